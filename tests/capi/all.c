/* Every function of the header, right and wrong, from one thread and from many. The server of tests/it/capi.rs does what
 * the ids of the conversations say: "busy" ones have another writer, "faulty" ones lose answers, "down" ones only fail. */
#include "genesys_attributes.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define THREADS 6

static char garbage[] = "not overwritten";
static char config[1024];
static int rounds;

static void fail(int line, const char *problem, const char *text) {
    fprintf(stderr, "all.c:%d: %s: %s\n", line, problem, text ? text : "(null)");
    exit(1);
}

static void check(int line, int found, int expected, const char *part, char *result) {
    char problem[160];
    if (found != expected) {
        snprintf(problem, sizeof problem, "status %s instead of %s", gca_status_name(found), gca_status_name(expected));
        fail(line, problem, result);
    }
    if (result == garbage || result == NULL) fail(line, "no result", result);
    if (found != GCA_OK && strstr(result, gca_status_name(found)) == NULL) fail(line, "the error has no kind", result);
    if (part != NULL && strstr(result, part) == NULL) fail(line, part, result);
    gca_string_free(result);
}

/* The call, which puts its answer into r, has this status, and the answer holds this text. */
#define EXPECT(status, part, call)                \
    do {                                          \
        int status_;                              \
        r = garbage;                              \
        status_ = (call);                         \
        check(__LINE__, status_, status, part, r); \
    } while (0)
#define REQUIRE(condition)                                            \
    do {                                                              \
        if (!(condition)) fail(__LINE__, "does not hold", #condition); \
    } while (0)

/* What the callbacks of a client share. */
struct seen {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    gca_client *client;
    int events;
    int intents;
    int outcomes;
    int lines;
    int refused;
};

static const char *flush_and_end(void *userdata);

static void seen_init(struct seen *seen) {
    memset(seen, 0, sizeof *seen);
    pthread_mutex_init(&seen->lock, NULL);
    pthread_cond_init(&seen->changed, NULL);
}

static void count(struct seen *seen, int *counter) {
    pthread_mutex_lock(&seen->lock);
    *counter += 1;
    pthread_cond_broadcast(&seen->changed);
    pthread_mutex_unlock(&seen->lock);
}

static int counted(struct seen *seen, const int *counter) {
    int value;
    pthread_mutex_lock(&seen->lock);
    value = *counter;
    pthread_mutex_unlock(&seen->lock);
    return value;
}

static int compute_nothing(void *userdata, const char *snapshot_json, gca_reply *reply) {
    (void)userdata;
    (void)snapshot_json;
    (void)reply;
    return 0;
}

static void on_update(void *userdata, const char *event_json) {
    struct seen *seen = userdata;
    char *r;
    count(seen, &seen->events);
    if (strstr(event_json, "\"calls-back\"") != NULL) {
        EXPECT(GCA_OK, "\"applied\"",
               gca_update(seen->client, "{\"conversationId\":\"called-back\",\"target\":\"conversation\",\"attributes\":{\"n\":1}}", NULL, &r));
        EXPECT(GCA_OK, "\"n\":1", gca_read(seen->client, "{\"conversationId\":\"calls-back\",\"target\":\"conversation\"}", NULL, &r));
        EXPECT(GCA_INVALID_INPUT, "flush after it", gca_flush(seen->client, 60000, NULL, &r));
        /* Nor can a batch be waited for that would wait for it. */
        EXPECT(GCA_OK, "\"lines\":0", gca_batch(seen->client, NULL, flush_and_end, NULL, seen->client, NULL, &r));
    }
    if (strstr(event_json, "\"calls-itself\"") != NULL) {
        int status = gca_update(seen->client, "{\"conversationId\":\"calls-itself\",\"target\":\"conversation\",\"attributes\":{\"n\":1}}", NULL, &r);
        check(__LINE__, status, status == GCA_OK ? GCA_OK : GCA_INVALID_INPUT, status == GCA_OK ? NULL : "guard", r);
        if (status != GCA_OK) {
            count(seen, &seen->refused);
            EXPECT(GCA_INVALID_INPUT, "guard", gca_batch(seen->client, NULL, flush_and_end, NULL, seen->client, NULL, &r));
        }
    }
}

static const char *flush_and_end(void *userdata) {
    char *r;
    EXPECT(GCA_INVALID_INPUT, "flush after it", gca_flush(userdata, 60000, NULL, &r));
    return NULL;
}

static void on_audit(void *userdata, const char *record_json) {
    struct seen *seen = userdata;
    char *r;
    /* A refused update leaves an outcome without an intent, and holds no lock. */
    if (strstr(record_json, "\"refused\"") != NULL) {
        if (strstr(record_json, "\"refused-calls-back\"") != NULL) {
            count(seen, &seen->refused);
            EXPECT(GCA_INVALID_INPUT, "same client",
                   gca_update(seen->client, "{\"conversationId\":\"x\",\"target\":\"conversation\",\"attributes\":{\"n\":1}}", NULL, &r));
            EXPECT(GCA_INVALID_INPUT, "same client",
                   gca_update_with(seen->client, "{\"conversationId\":\"x\",\"target\":\"conversation\"}", compute_nothing, NULL, NULL, &r));
        }
        return;
    }
    count(seen, strstr(record_json, "\"intent\"") != NULL ? &seen->intents : &seen->outcomes);
    if (strstr(record_json, "\"calls-back\"") != NULL) {
        EXPECT(GCA_INVALID_INPUT, NULL,
               gca_update(seen->client, "{\"conversationId\":\"x\",\"target\":\"conversation\",\"attributes\":{\"n\":1}}", NULL, &r));
        EXPECT(GCA_OK, "totalAttempts", gca_metrics(seen->client, &r));
    }
}

static gca_client *make(const char *json, struct seen *seen) {
    gca_callbacks callbacks;
    gca_client *client = NULL;
    char *r;
    memset(&callbacks, 0, sizeof callbacks);
    callbacks.size = sizeof callbacks;
    callbacks.userdata = seen;
    callbacks.on_update = on_update;
    callbacks.on_audit = on_audit;
    EXPECT(GCA_OK, "{}", gca_client_new(json, seen ? &callbacks : NULL, &client, &r));
    REQUIRE(client != NULL);
    if (seen) seen->client = client;
    return client;
}

/* --- NULL, and input that is none ------------------------------------------------------------------------------------ */

static const char *no_line(void *userdata) {
    (void)userdata;
    return NULL;
}

/* A program that was compiled with a later header has more fields. */
static void later_callbacks(void) {
    struct {
        gca_callbacks callbacks;
        void *later[4];
    } more;
    gca_client *client = NULL;
    struct seen seen;
    char *r;
    seen_init(&seen);
    memset(&more, 0xff, sizeof more);
    more.callbacks.size = sizeof more;
    more.callbacks.userdata = &seen;
    more.callbacks.on_update = on_update;
    more.callbacks.on_audit = NULL;
    EXPECT(GCA_OK, "{}", gca_client_new(config, &more.callbacks, &client, &r));
    EXPECT(GCA_OK, NULL, gca_update(client, "{\"conversationId\":\"later\",\"target\":\"conversation\",\"attributes\":{\"n\":1}}", NULL, &r));
    REQUIRE(counted(&seen, &seen.events) == 1);
    gca_client_free(client);
}

static void nulls(gca_client *client) {
    const char *update = "{\"conversationId\":\"c\",\"target\":\"conversation\",\"attributes\":{\"n\":1}}";
    const char *target = "{\"conversationId\":\"c\",\"target\":\"conversation\"}";
    gca_client *untouched = (gca_client *)garbage;
    gca_callbacks small;
    char *deep;
    char *r;

    gca_string_free(NULL);
    gca_client_free(NULL);
    gca_cancel_free(NULL);
    gca_cancel_trigger(NULL);

    REQUIRE(gca_client_new(NULL, NULL, NULL, NULL) == GCA_INVALID_INPUT);
    EXPECT(GCA_INVALID_INPUT, "client is NULL", gca_client_new("{}", NULL, NULL, &r));
    EXPECT(GCA_CONFIG, "regoin", gca_client_new("{\"regoin\":1}", NULL, &untouched, &r));
    EXPECT(GCA_CONFIG, "clientSecret", gca_client_new("{\"region\":\"eu-west-1\",\"clientId\":\"i\"}", NULL, &untouched, &r));
    EXPECT(GCA_CONFIG, "not JSON", gca_client_new("{", NULL, &untouched, &r));
    EXPECT(GCA_INVALID_INPUT, "UTF-8", gca_client_new("\xff", NULL, &untouched, &r));
    EXPECT(GCA_CONFIG, "GENESYS_CLOUD_", gca_client_new(NULL, NULL, &untouched, &r));
    memset(&small, 0, sizeof small);
    EXPECT(GCA_INVALID_INPUT, "sizeof", gca_client_new(config, &small, &untouched, &r));
    REQUIRE(untouched == (gca_client *)garbage);
    later_callbacks();

    /* Nesting that would use up the stack. */
    deep = malloc(1000001);
    REQUIRE(deep != NULL);
    memset(deep, '[', 1000000);
    deep[1000000] = 0;
    EXPECT(GCA_INVALID_INPUT, "not JSON", gca_update(client, deep, NULL, &r));
    EXPECT(GCA_CONFIG, "not JSON", gca_client_new(deep, NULL, &untouched, &r));
    free(deep);

    REQUIRE(gca_update(NULL, NULL, NULL, NULL) == GCA_INVALID_INPUT);
    EXPECT(GCA_INVALID_INPUT, "client is NULL", gca_update(NULL, update, NULL, &r));
    EXPECT(GCA_INVALID_INPUT, "update_json is NULL", gca_update(client, NULL, NULL, &r));
    EXPECT(GCA_INVALID_INPUT, "not UTF-8", gca_update(client, "{\"conversationId\":\"\xc3\x28\"}", NULL, &r));
    EXPECT(GCA_INVALID_INPUT, "not JSON", gca_update(client, "", NULL, &r));
    EXPECT(GCA_INVALID_INPUT, "not a JSON object", gca_update(client, "[1]", NULL, &r));
    EXPECT(GCA_INVALID_INPUT, "conversationId", gca_update(client, "{}", NULL, &r));
    EXPECT(GCA_INVALID_INPUT, "wrnog", gca_update(client, "{\"conversationId\":\"c\",\"target\":\"conversation\",\"wrnog\":1}", NULL, &r));
    EXPECT(GCA_INVALID_INPUT, "nothingToDo", gca_update(client, target, NULL, &r));

    REQUIRE(gca_update_with(NULL, NULL, NULL, NULL, NULL, NULL) == GCA_INVALID_INPUT);
    EXPECT(GCA_INVALID_INPUT, "client is NULL", gca_update_with(NULL, target, compute_nothing, NULL, NULL, &r));
    EXPECT(GCA_INVALID_INPUT, "target_json is NULL", gca_update_with(client, NULL, compute_nothing, NULL, NULL, &r));
    EXPECT(GCA_INVALID_INPUT, "compute is NULL", gca_update_with(client, target, NULL, NULL, NULL, &r));
    EXPECT(GCA_INVALID_INPUT, "attributes", gca_update_with(client, update, compute_nothing, NULL, NULL, &r));
    REQUIRE(gca_reply_set(NULL, NULL) == GCA_INVALID_INPUT);
    REQUIRE(gca_reply_set(NULL, "{}") == GCA_INVALID_INPUT);

    REQUIRE(gca_read(NULL, NULL, NULL, NULL) == GCA_INVALID_INPUT);
    EXPECT(GCA_INVALID_INPUT, "client is NULL", gca_read(NULL, target, NULL, &r));
    EXPECT(GCA_INVALID_INPUT, "target_json is NULL", gca_read(client, NULL, NULL, &r));
    EXPECT(GCA_INVALID_INPUT, "\"identifier\"", gca_read(client, "{\"conversationId\":\"../c\",\"target\":\"conversation\"}", NULL, &r));
    REQUIRE(gca_validate(NULL, NULL, NULL) == GCA_INVALID_INPUT);
    EXPECT(GCA_INVALID_INPUT, "client is NULL", gca_validate(NULL, update, &r));
    EXPECT(GCA_INVALID_INPUT, "update_json is NULL", gca_validate(client, NULL, &r));
    REQUIRE(gca_verify_credentials(NULL, NULL, NULL) == GCA_INVALID_INPUT);
    EXPECT(GCA_INVALID_INPUT, "client is NULL", gca_verify_credentials(NULL, NULL, &r));
    REQUIRE(gca_metrics(NULL, NULL) == GCA_INVALID_INPUT);
    EXPECT(GCA_INVALID_INPUT, "client is NULL", gca_metrics(NULL, &r));
    REQUIRE(gca_metrics_prometheus(NULL, NULL) == GCA_INVALID_INPUT);
    EXPECT(GCA_INVALID_INPUT, "client is NULL", gca_metrics_prometheus(NULL, &r));
    REQUIRE(gca_flush(NULL, 0, NULL, NULL) == GCA_INVALID_INPUT);
    EXPECT(GCA_INVALID_INPUT, "client is NULL", gca_flush(NULL, 0, NULL, &r));
    REQUIRE(gca_batch(NULL, NULL, NULL, NULL, NULL, NULL, NULL) == GCA_INVALID_INPUT);
    EXPECT(GCA_INVALID_INPUT, "client is NULL", gca_batch(NULL, NULL, no_line, NULL, NULL, NULL, &r));
    EXPECT(GCA_INVALID_INPUT, "next_line is NULL", gca_batch(client, NULL, NULL, NULL, NULL, NULL, &r));
    EXPECT(GCA_INVALID_INPUT, "wokers", gca_batch(client, "{\"wokers\":1}", no_line, NULL, NULL, NULL, &r));
    EXPECT(GCA_INVALID_INPUT, "workers", gca_batch(client, "{\"workers\":-1}", no_line, NULL, NULL, NULL, &r));
    EXPECT(GCA_OK, "\"lines\":0", gca_batch(client, NULL, no_line, NULL, NULL, NULL, &r));
    REQUIRE(strcmp(gca_status_name(12345), "unknown") == 0);
    REQUIRE(strlen(gca_version()) >= 5);
}

/* --- Each function at its work --------------------------------------------------------------------------------------- */

/* Adds 1 to the attribute n, as far as text can be read without a JSON library. */
static int increment(void *userdata, const char *snapshot_json, gca_reply *reply) {
    const char *at = strstr(snapshot_json, "\"n\":");
    char wanted[64];
    (void)userdata;
    snprintf(wanted, sizeof wanted, "{\"n\":%d}", at != NULL ? atoi(at + 4) + 1 : 1);
    REQUIRE(gca_reply_set(reply, wanted) == GCA_OK);
    return 0;
}

static int give_up(void *userdata, const char *snapshot_json, gca_reply *reply) {
    (void)userdata;
    (void)snapshot_json;
    REQUIRE(gca_reply_set(reply, "{\"n\":99}") == GCA_OK);
    return 7;
}

static int answer_badly(void *userdata, const char *snapshot_json, gca_reply *reply) {
    (void)userdata;
    (void)snapshot_json;
    REQUIRE(gca_reply_set(reply, NULL) == GCA_INVALID_INPUT);
    REQUIRE(gca_reply_set(reply, "\xfe") == GCA_INVALID_INPUT);
    REQUIRE(gca_reply_set(reply, "[]") == GCA_INVALID_INPUT);
    return 0;
}

static int call_back(void *userdata, const char *snapshot_json, gca_reply *reply) {
    gca_client *client = userdata;
    char *r;
    (void)snapshot_json;
    EXPECT(GCA_INVALID_INPUT, NULL, gca_update(client, "{\"conversationId\":\"x\",\"target\":\"conversation\",\"attributes\":{\"n\":1}}", NULL, &r));
    EXPECT(GCA_INVALID_INPUT, NULL,
           gca_update_with(client, "{\"conversationId\":\"plain\",\"target\":\"conversation\"}", compute_nothing, NULL, NULL, &r));
    EXPECT(GCA_INVALID_INPUT, NULL, gca_batch(client, NULL, no_line, NULL, NULL, NULL, &r));
    EXPECT(GCA_INVALID_INPUT, NULL, gca_flush(client, 60000, NULL, &r));
    EXPECT(GCA_OK, "\"version\"", gca_read(client, "{\"conversationId\":\"plain\",\"target\":\"conversation\"}", NULL, &r));
    EXPECT(GCA_OK, "{}", gca_validate(client, "{\"conversationId\":\"c\",\"target\":\"conversation\",\"attributes\":{\"n\":1}}", &r));
    REQUIRE(gca_reply_set(reply, "{\"n\":50}") == GCA_OK);
    return 0;
}

static void plain(gca_client *client, struct seen *seen) {
    const char *target = "{\"conversationId\":\"plain\",\"target\":\"conversation\"}";
    int before = counted(seen, &seen->events);
    char *r;
    EXPECT(GCA_OK, "\"applied\"",
           gca_update(client, "{\"conversationId\":\"plain\",\"target\":\"conversation\",\"attributes\":{\"n\":1,\"text\":\"\xc3\xa4\\u0000\"}}", NULL, &r));
    EXPECT(GCA_OK, "\"text\":\"\xc3\xa4\\u0000\"", gca_read(client, target, NULL, &r));
    REQUIRE(gca_update(client, "{\"conversationId\":\"plain\",\"target\":\"conversation\",\"attributes\":{\"n\":1}}", NULL, NULL) == GCA_OK);
    EXPECT(GCA_OK, "\"applied\"", gca_update_with(client, target, increment, NULL, NULL, &r));
    EXPECT(GCA_OK, "\"n\":2", gca_read(client, target, NULL, &r));
    EXPECT(GCA_OK, "\"unchanged\"", gca_update_with(client, target, compute_nothing, NULL, NULL, &r));
    EXPECT(GCA_CANCELLED, "(7)", gca_update_with(client, target, give_up, NULL, NULL, &r));
    EXPECT(GCA_INVALID_INPUT, "attributes_json", gca_update_with(client, target, answer_badly, NULL, NULL, &r));
    EXPECT(GCA_OK, "\"n\":2", gca_read(client, target, NULL, &r));
    EXPECT(GCA_OK, "\"applied\"", gca_update_with(client, target, call_back, client, NULL, &r));
    EXPECT(GCA_OK, "\"n\":50", gca_read(client, target, NULL, &r));
    REQUIRE(counted(seen, &seen->events) == before + 4);

    EXPECT(GCA_OK, "\"applied\"", gca_update(client, "{\"conversationId\":\"calls-back\",\"target\":\"conversation\",\"attributes\":{\"n\":1}}", NULL, &r));
    REQUIRE(counted(seen, &seen->events) == before + 6);

    /* 16 of them are inside of each other. */
    EXPECT(GCA_OK, "\"applied\"",
           gca_update(client, "{\"conversationId\":\"calls-itself\",\"target\":\"conversation\",\"attributes\":{\"n\":1}}", NULL, &r));
    REQUIRE(counted(seen, &seen->events) == before + 22);
    REQUIRE(counted(seen, &seen->refused) == 1);
    EXPECT(GCA_INVALID_INPUT, "\"keyEmpty\"",
           gca_update(client, "{\"conversationId\":\"refused-calls-back\",\"target\":\"conversation\",\"attributes\":{\"\":1}}", NULL, &r));
    REQUIRE(counted(seen, &seen->refused) == 2);

    EXPECT(GCA_INVALID_INPUT, "verify", gca_read(client, "{\"conversationId\":\"plain\",\"verify\":true}", NULL, &r));
    EXPECT(GCA_INVALID_INPUT, "verify",
           gca_update_with(client, "{\"conversationId\":\"plain\",\"verify\":true}", increment, NULL, NULL, &r));

    EXPECT(GCA_OK, "{}", gca_validate(client, "{\"conversationId\":\"c\",\"target\":\"conversation\",\"attributes\":{\"n\":1}}", &r));
    EXPECT(GCA_INVALID_INPUT, "\"rule\":\"integer\"",
           gca_validate(client, "{\"conversationId\":\"c\",\"target\":\"conversation\",\"attributes\":{\"n\":1.5}}", &r));
    EXPECT(GCA_OK, "\"purpose\":\"customer\"", gca_participants(client, "plain", NULL, &r));
    EXPECT(GCA_INVALID_INPUT, "conversation_id", gca_participants(client, NULL, NULL, &r));
    EXPECT(GCA_INVALID_INPUT, "conversationId", gca_participants(client, "../c", NULL, &r));
    EXPECT(GCA_OK, "organizationId", gca_verify_credentials(client, NULL, &r));
    EXPECT(GCA_OK, "\"totalAttempts\":", gca_metrics(client, &r));
    EXPECT(GCA_OK, "# TYPE genesys_attributes_calls_total counter", gca_metrics_prometheus(client, &r));
    EXPECT(GCA_OK, "{}", gca_flush(client, 10000, NULL, &r));
    EXPECT(GCA_NOT_FOUND, "404", gca_read(client, "{\"conversationId\":\"absent\",\"target\":\"conversation\"}", NULL, &r));
}

/* --- Many threads ---------------------------------------------------------------------------------------------------- */

struct worker {
    gca_client *client;
    int number;
};

static void *work(void *argument) {
    struct worker *worker = argument;
    gca_cancel *cancel = gca_cancel_new();
    char update[160];
    char *r;
    int round;
    for (round = 1; round <= rounds; round++) {
        EXPECT(GCA_OK, "\"applied\"",
               gca_update_with(worker->client, "{\"conversationId\":\"busy\",\"target\":\"conversation\"}", increment, NULL, cancel, &r));
        snprintf(update, sizeof update, "{\"conversationId\":\"faulty-%d\",\"target\":\"conversation\",\"attributes\":{\"n\":%d}}", worker->number, round);
        EXPECT(GCA_OK, "pplied\"", gca_update(worker->client, update, round % 2 ? cancel : NULL, &r));
        EXPECT(GCA_OK, NULL, gca_metrics(worker->client, &r));
        EXPECT(GCA_INVALID_INPUT, "\"keyEmpty\"",
               gca_update(worker->client, "{\"conversationId\":\"c\",\"target\":\"conversation\",\"attributes\":{\"\":1}}", NULL, &r));
    }
    gca_cancel_free(cancel);
    return NULL;
}

static void many(gca_client *client, struct seen *seen) {
    pthread_t threads[THREADS];
    struct worker workers[THREADS];
    int events = counted(seen, &seen->events), intents = counted(seen, &seen->intents);
    char wanted[64], target[64];
    char *r;
    int i;
    for (i = 0; i < THREADS; i++) {
        workers[i].client = client;
        workers[i].number = i;
        REQUIRE(pthread_create(&threads[i], NULL, work, &workers[i]) == 0);
    }
    for (i = 0; i < THREADS; i++) REQUIRE(pthread_join(threads[i], NULL) == 0);
    snprintf(wanted, sizeof wanted, "\"n\":%d", THREADS * rounds);
    EXPECT(GCA_OK, wanted, gca_read(client, "{\"conversationId\":\"busy\",\"target\":\"conversation\"}", NULL, &r));
    for (i = 0; i < THREADS; i++) {
        snprintf(wanted, sizeof wanted, "\"n\":%d", rounds);
        snprintf(target, sizeof target, "{\"conversationId\":\"faulty-%d\",\"target\":\"conversation\"}", i);
        EXPECT(GCA_OK, wanted, gca_read(client, target, NULL, &r));
    }
    REQUIRE(counted(seen, &seen->events) == events + 2 * THREADS * rounds);
    REQUIRE(counted(seen, &seen->intents) == intents + 2 * THREADS * rounds);
    REQUIRE(counted(seen, &seen->intents) == counted(seen, &seen->outcomes));
}

/* --- Cancelling ------------------------------------------------------------------------------------------------------ */

struct cancelling {
    struct seen *seen;
    const int *counter;
    int at_least;
    gca_cancel *cancel;
};

static void *cancel_later(void *argument) {
    struct cancelling *when = argument;
    pthread_mutex_lock(&when->seen->lock);
    while (*when->counter < when->at_least) pthread_cond_wait(&when->seen->changed, &when->seen->lock);
    pthread_mutex_unlock(&when->seen->lock);
    gca_cancel_trigger(when->cancel);
    gca_cancel_trigger(when->cancel);
    return NULL;
}

static const char *endless(void *userdata) {
    static const char line[] = "{\"conversationId\":\"endless\",\"target\":\"conversation\",\"attributes\":{\"n\":1}}";
    (void)userdata;
    return line;
}

static int count_line(void *userdata, const char *outcome_json) {
    struct seen *seen = userdata;
    REQUIRE(strstr(outcome_json, "\"line\":") != NULL);
    count(seen, &seen->lines);
    return 0;
}

static int stop_at_once(void *userdata, const char *outcome_json) {
    (void)userdata;
    (void)outcome_json;
    return 1;
}

static void cancels(gca_client *client, struct seen *seen) {
    struct cancelling when;
    pthread_t thread;
    char *r;

    /* From another thread, while the update waits for its next attempt. */
    when.seen = seen;
    when.counter = &seen->intents;
    when.at_least = counted(seen, &seen->intents) + 1;
    when.cancel = gca_cancel_new();
    REQUIRE(pthread_create(&thread, NULL, cancel_later, &when) == 0);
    EXPECT(GCA_CANCELLED, NULL,
           gca_update(client, "{\"conversationId\":\"down\",\"target\":\"conversation\",\"attributes\":{\"n\":1}}", when.cancel, &r));
    REQUIRE(pthread_join(thread, NULL) == 0);
    /* It stays set. */
    EXPECT(GCA_CANCELLED, NULL,
           gca_update(client, "{\"conversationId\":\"plain\",\"target\":\"conversation\",\"attributes\":{\"n\":1}}", when.cancel, &r));
    EXPECT(GCA_CANCELLED, NULL,
           gca_update_with(client, "{\"conversationId\":\"plain\",\"target\":\"conversation\"}", increment, NULL, when.cancel, &r));
    EXPECT(GCA_OK, "\"stopped\":\"cancelled\"", gca_batch(client, NULL, endless, count_line, seen, when.cancel, &r));
    EXPECT(GCA_CANCELLED, NULL, gca_read(client, "{\"conversationId\":\"plain\",\"target\":\"conversation\"}", when.cancel, &r));
    EXPECT(GCA_CANCELLED, NULL,
           gca_preview(client, "{\"conversationId\":\"plain\",\"target\":\"conversation\",\"attributes\":{\"n\":1}}", when.cancel, &r));
    EXPECT(GCA_CANCELLED, NULL, gca_participants(client, "plain", when.cancel, &r));
    EXPECT(GCA_CANCELLED, NULL, gca_verify_credentials(client, when.cancel, &r));
    gca_cancel_free(when.cancel);

    /* A batch, too. */
    when.counter = &seen->lines;
    when.at_least = counted(seen, &seen->lines) + 5;
    when.cancel = gca_cancel_new();
    REQUIRE(pthread_create(&thread, NULL, cancel_later, &when) == 0);
    EXPECT(GCA_OK, "\"stopped\":\"cancelled\"",
           gca_batch(client, "{\"workers\":4}", endless, count_line, seen, when.cancel, &r));
    REQUIRE(pthread_join(thread, NULL) == 0);
    gca_cancel_free(when.cancel);

    /* One that stops for its own reasons leaves the caller's flag alone. */
    when.cancel = gca_cancel_new();
    EXPECT(GCA_OK, "\"stopped\":\"break\"", gca_batch(client, NULL, endless, stop_at_once, seen, when.cancel, &r));
    EXPECT(GCA_OK, NULL, gca_update(client, "{\"conversationId\":\"plain\",\"target\":\"conversation\",\"attributes\":{\"n\":1}}", when.cancel, &r));
    gca_cancel_free(when.cancel);
}

/* --- Batch ----------------------------------------------------------------------------------------------------------- */

struct input {
    gca_client *client;
    int given;
    int total;
    int applied;
    int failed;
    char line[160];
};

static const char *next_line(void *userdata) {
    struct input *input = userdata;
    char *r;
    if (input->given == input->total) return NULL;
    input->given += 1;
    if (input->given == 3) return "{\"conversationId\":\"batch\"";
    if (input->given == 4) return "\xff\xff";
    if (input->given == 5) {
        /* Calling back from here works. */
        EXPECT(GCA_OK, NULL, gca_update(input->client, "{\"conversationId\":\"plain\",\"target\":\"conversation\",\"attributes\":{\"n\":1}}", NULL, &r));
    }
    snprintf(input->line, sizeof input->line, "{\"conversationId\":\"batch-%d\",\"target\":\"conversation\",\"attributes\":{\"n\":%d}}", input->given % 7,
             input->given);
    return input->line;
}

static int on_outcome(void *userdata, const char *outcome_json) {
    struct input *input = userdata;
    char *r;
    if (strstr(outcome_json, "\"applied\"") != NULL) {
        input->applied += 1;
    } else {
        REQUIRE(strstr(outcome_json, "\"invalidInput\"") != NULL);
        input->failed += 1;
    }
    EXPECT(GCA_OK, NULL, gca_read(input->client, "{\"conversationId\":\"plain\",\"target\":\"conversation\"}", NULL, &r));
    return 0;
}

static void batches(gca_client *client) {
    struct input input;
    char *r;
    memset(&input, 0, sizeof input);
    input.client = client;
    input.total = 40;
    EXPECT(GCA_OK, "\"applied\":38", gca_batch(client, "{\"workers\":6}", next_line, on_outcome, &input, NULL, &r));
    REQUIRE(input.applied == 38 && input.failed == 2 && input.given == 40);

    memset(&input, 0, sizeof input);
    input.client = client;
    input.total = 40;
    EXPECT(GCA_OK, "\"stopped\":\"failures\"", gca_batch(client, "{\"stopAfter\":1}", next_line, NULL, &input, NULL, &r));
}

/* All on this thread, by a loop as the header shows it. */
static void pushes(gca_client *client) {
    gca_batch_run *batch = NULL;
    char line[160], tag[32], *r;
    int what = GCA_BATCH_NOTHING, given = 0, applied = 0, full = 0;
    EXPECT(GCA_INVALID_INPUT, "wokers", gca_batch_start(client, "{\"wokers\":1}", &batch, &r));
    EXPECT(GCA_OK, "{}", gca_batch_start(client, "{\"workers\":6}", &batch, &r));
    while (what != GCA_BATCH_REPORT) {
        if (given < 2000) {
            snprintf(line, sizeof line, "{\"conversationId\":\"push-%d\",\"target\":\"conversation\",\"attributes\":{\"n\":%d}}", given % 7, given);
            snprintf(tag, sizeof tag, "tag-%d", given + 1);
            EXPECT(GCA_OK, "{}", gca_batch_push(batch, line, tag, &full, &r));
            if (!full) given += 1;
            if (given == 2000) EXPECT(GCA_OK, "{}", gca_batch_finish(batch, &r));
        }
        r = garbage;
        if (gca_batch_next(batch, full || given == 2000 ? 60000 : 0, &what, &r) != GCA_OK) fail(__LINE__, "next", r);
        REQUIRE(what != GCA_BATCH_NOTHING || given < 2000);
        if (what == GCA_BATCH_OUTCOME) {
            unsigned number = 0;
            REQUIRE(sscanf(r, "{\"line\":%u,", &number) == 1);
            snprintf(tag, sizeof tag, "\"tag\":\"tag-%u\"", number);
            if (strstr(r, tag) == NULL || strstr(r, "\"applied\"") == NULL) fail(__LINE__, tag, r);
            applied += 1;
        }
        if (what == GCA_BATCH_REPORT && strstr(r, "\"applied\":2000") == NULL) fail(__LINE__, "report", r);
        gca_string_free(r);
    }
    REQUIRE(applied == 2000);
    gca_batch_free(batch);

    /* One that is freed before its end. */
    EXPECT(GCA_OK, "{}", gca_batch_start(client, NULL, &batch, &r));
    EXPECT(GCA_OK, "{}", gca_batch_push(batch, "{\"conversationId\":\"plain\",\"target\":\"conversation\",\"attributes\":{\"n\":1}}", NULL, &full, &r));
    gca_batch_free(batch);
}

/* --- Log ------------------------------------------------------------------------------------------------------------- */

static struct seen logged;

static void on_log(void *userdata, int level, const char *target, const char *message) {
    char *r;
    REQUIRE(userdata == &logged);
    REQUIRE(level >= 1 && level <= 4);
    REQUIRE(strstr(message, "the-secret") == NULL);
    REQUIRE(strncmp(target, "ureq", 4) != 0);
    EXPECT(GCA_INVALID_INPUT, "log callback", gca_metrics(logged.client, &r));
    count(&logged, &logged.lines);
}

/* Where the system gives no thread, which is no defect of the library. */
static void no_threads(void) {
    gca_client *client = make(config, NULL);
    struct input input;
    char *r;
    memset(&input, 0, sizeof input);
    input.client = client;
    input.total = 2;
    EXPECT(GCA_CONFIG, "no thread", gca_batch(client, "{\"workers\":4}", next_line, NULL, &input, NULL, &r));
    EXPECT(GCA_OK, "\"applied\"", gca_update(client, "{\"conversationId\":\"plain\",\"target\":\"conversation\",\"attributes\":{\"n\":1}}", NULL, &r));
    gca_client_free(client);
    puts("all done");
}

int main(int argc, char **argv) {
    struct seen seen;
    gca_client *client;
    char slow[1100];
    if (argc != 3) return 2;
    rounds = atoi(argv[2]);
    snprintf(config, sizeof config,
             "{\"baseUrl\":\"%s\",\"clientId\":\"id\",\"clientSecret\":\"the-secret\",\"ratePerMinute\":0,"
             "\"retry\":{\"maxAttempts\":50,\"maxConflicts\":50,\"backoffBaseMs\":1,\"backoffMaxMs\":2}}",
             argv[1]);
    snprintf(slow, sizeof slow,
             "{\"baseUrl\":\"%s\",\"clientId\":\"id\",\"clientSecret\":\"the-secret\",\"ratePerMinute\":0,"
             "\"retry\":{\"maxAttempts\":1000000,\"deadlineSeconds\":86400,\"backoffBaseMs\":50,\"backoffMaxMs\":50}}",
             argv[1]);
    if (strcmp(argv[2], "no threads") == 0) {
        no_threads();
        return 0;
    }
    seen_init(&logged);
    REQUIRE(gca_set_logger(on_log, &logged, 9) == GCA_INVALID_INPUT);
    REQUIRE(gca_set_logger(on_log, &logged, 4) == GCA_OK);
    /* It can be removed, and set again. */
    REQUIRE(gca_set_logger(NULL, NULL, 4) == GCA_OK);
    REQUIRE(gca_set_logger(on_log, &logged, 4) == GCA_OK);

    seen_init(&seen);
    client = make(config, &seen);
    logged.client = client;
    nulls(client);
    plain(client, &seen);
    many(client, &seen);
    batches(client);
    pushes(client);
    gca_client_free(client);

    seen_init(&seen);
    client = make(slow, &seen);
    logged.client = client;
    cancels(client, &seen);
    gca_client_free(client);

    client = make(config, NULL);
    gca_client_free(client);
    REQUIRE(counted(&logged, &logged.lines) > 0);
    REQUIRE(gca_set_logger(NULL, NULL, 0) == GCA_OK);
    puts("all done");
    return 0;
}
