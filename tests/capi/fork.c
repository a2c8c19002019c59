/* Forks while other threads are in calls. A child can't use its parent's client, frees it at once, and works with one of
 * its own. The server of tests/it/capi.rs counts a connection that carries requests of two processes as an error. */
#include "genesys_attributes.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHILDREN 20
#define THREADS 3

static char config[2048];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
static int held, released, stopping;
static gca_client *parent;
static gca_batch_run *batch;

static void fail(int line, const char *problem) {
    fprintf(stderr, "fork.c:%d: process %d: %s\n", line, (int)getpid(), problem ? problem : "(null)");
    _exit(1);
}

#define REQUIRE(condition)                      \
    do {                                        \
        if (!(condition)) fail(__LINE__, #condition); \
    } while (0)

static void expect(int line, int found, int expected, const char *part, char *result) {
    if (found != expected || (part != NULL && strstr(result, part) == NULL)) fail(line, result);
    gca_string_free(result);
}

#define EXPECT(status, part, call)                   \
    do {                                             \
        char *r = NULL;                              \
        int status_ = (call);                        \
        expect(__LINE__, status_, status, part, r);  \
    } while (0)
#define REFUSED(call) EXPECT(GCA_CONFIG, "made before a fork: make a client in each process", call)

/* A record of the conversation "held" waits, and its update with it. */
static void on_audit(void *userdata, const char *record) {
    (void)userdata;
    if (strstr(record, "\"held\"") == NULL) return;
    pthread_mutex_lock(&lock);
    held = 1;
    pthread_cond_broadcast(&changed);
    while (!released) pthread_cond_wait(&changed, &lock);
    pthread_mutex_unlock(&lock);
}

static const char *own_update(char *text, size_t size, const char *name) {
    snprintf(text, size, "{\"conversationId\":\"of-process-%d-%s\",\"target\":\"conversation\",\"attributes\":{\"n\":1}}", (int)getpid(), name);
    return text;
}

static void *hold(void *unused) {
    (void)unused;
    EXPECT(GCA_OK, NULL, gca_update(parent, "{\"conversationId\":\"held\",\"target\":\"conversation\",\"attributes\":{\"n\":1}}", NULL, &r));
    return NULL;
}

static void *keep_busy(void *name) {
    char text[200];
    int done = 0;
    while (!done) {
        EXPECT(GCA_OK, NULL, gca_update(parent, own_update(text, sizeof text, name), NULL, &r));
        pthread_mutex_lock(&lock);
        done = stopping;
        pthread_mutex_unlock(&lock);
    }
    return NULL;
}

static int compute(void *userdata, const char *snapshot, gca_reply *reply) {
    (void)userdata, (void)snapshot, (void)reply;
    fail(__LINE__, "compute is called");
    return 0;
}

static const char *next_line(void *userdata) {
    (void)userdata;
    fail(__LINE__, "next_line is called");
    return NULL;
}

static void child(gca_cancel *cancel) {
    char text[200];
    int status;
    gca_client *own = NULL;
    /* Ends a child that hangs. */
    alarm(30);
    own_update(text, sizeof text, "child");
    REFUSED(gca_update(parent, text, NULL, &r));
    REFUSED(gca_update(parent, text, cancel, &r));
    REFUSED(gca_update_with(parent, "{\"conversationId\":\"c\",\"target\":\"conversation\"}", compute, NULL, NULL, &r));
    REFUSED(gca_read(parent, "{\"conversationId\":\"c\",\"target\":\"conversation\"}", NULL, &r));
    REFUSED(gca_participants(parent, "c", NULL, &r));
    REFUSED(gca_verify_credentials(parent, NULL, &r));
    REFUSED(gca_flush(parent, 100, NULL, &r));
    REFUSED(gca_batch(parent, NULL, next_line, NULL, NULL, NULL, &r));
    REFUSED(gca_preview(parent, text, NULL, &r));
    REFUSED(gca_batch_start(parent, NULL, &batch, &r));
    REFUSED(gca_batch_push(batch, text, NULL, &status, &r));
    REFUSED(gca_batch_next(batch, 60000, &status, &r));
    REFUSED(gca_batch_finish(batch, &r));
    gca_batch_cancel(batch);
    gca_batch_free(batch);
    EXPECT(GCA_OK, NULL, gca_metrics(parent, &r));
    gca_cancel_trigger(cancel);
    gca_cancel_free(cancel);
    gca_client_free(parent);

    EXPECT(GCA_OK, NULL, gca_client_new(config, NULL, &own, &r));
    EXPECT(GCA_OK, "\"applied\"", gca_update(own, text, NULL, &r));
    snprintf(text, sizeof text, "{\"conversationId\":\"of-process-%d-child\",\"target\":\"conversation\"}", (int)getpid());
    EXPECT(GCA_OK, "\"n\":1", gca_read(own, text, NULL, &r));
    gca_client_free(own);
    _exit(0);
}

int main(int argc, char **argv) {
    pthread_t threads[THREADS + 1];
    const char *names[THREADS] = {"a", "b", "c"};
    char text[200];
    gca_callbacks callbacks = {sizeof callbacks, NULL, NULL, on_audit};
    gca_cancel *cancel = gca_cancel_new();
    int i, status;

    REQUIRE(argc == 3);
    snprintf(config, sizeof config,
             "{\"baseUrl\":\"%s\",\"clientId\":\"id\",\"clientSecret\":\"secret\",\"ratePerMinute\":0%s%s%s}", argv[1],
             *argv[2] ? ",\"rootCertificatesFile\":\"" : "", argv[2], *argv[2] ? "\"" : "");
    EXPECT(GCA_OK, NULL, gca_client_new(config, &callbacks, &parent, &r));
    EXPECT(GCA_OK, NULL, gca_update(parent, own_update(text, sizeof text, "main"), NULL, &r));
    EXPECT(GCA_OK, NULL, gca_batch_start(parent, NULL, &batch, &r));

    REQUIRE(pthread_create(&threads[THREADS], NULL, hold, NULL) == 0);
    pthread_mutex_lock(&lock);
    while (!held) pthread_cond_wait(&changed, &lock);
    pthread_mutex_unlock(&lock);
    for (i = 0; i < THREADS; i++) REQUIRE(pthread_create(&threads[i], NULL, keep_busy, (void *)names[i]) == 0);

    for (i = 0; i < CHILDREN; i++) {
        pid_t process = fork();
        REQUIRE(process >= 0);
        if (process == 0) child(cancel);
        REQUIRE(waitpid(process, &status, 0) == process);
        if (status != 0) fail(__LINE__, WIFSIGNALED(status) ? "a child was ended by a signal" : "a child failed");
    }

    pthread_mutex_lock(&lock);
    released = stopping = 1;
    pthread_cond_broadcast(&changed);
    pthread_mutex_unlock(&lock);
    for (i = 0; i <= THREADS; i++) REQUIRE(pthread_join(threads[i], NULL) == 0);
    EXPECT(GCA_OK, NULL, gca_update(parent, own_update(text, sizeof text, "main"), NULL, &r));
    EXPECT(GCA_OK, NULL, gca_flush(parent, 1000, NULL, &r));
    gca_batch_free(batch);
    gca_cancel_free(cancel);
    gca_client_free(parent);
    puts("all done");
    return 0;
}
