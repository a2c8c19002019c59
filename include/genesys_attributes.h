/*
 * genesys_attributes.h: change attributes on Genesys Cloud conversations safely, from C.
 *
 *     gca_client *client = NULL;
 *     char *result = NULL;
 *     int status = gca_client_new(NULL, NULL, &client, &result);
 *     if (status == GCA_OK) {
 *         gca_string_free(result);
 *         status = gca_update(client,
 *             "{\"conversationId\":\"5b2f...\",\"participant\":\"customer\",\"attributes\":{\"tier\":\"gold\"}}",
 *             NULL, &result);
 *     }
 *     puts(result);
 *     gca_string_free(result);
 *     gca_client_free(client);
 *
 * CONVENTIONS
 *
 * Strings in:   UTF-8, ended by NUL, read before the function returns, never kept. NULL and bytes that are not UTF-8
 *               are GCA_INVALID_INPUT, unless NULL is given a meaning below.
 * Status:       every function that can fail returns one: GCA_OK, or the kind of the error.
 * Results:      such a function writes a text to *result that the caller frees by gca_string_free: the answer on GCA_OK
 *               ("{}" where there is nothing to say), else the error as JSON. Every field of every answer is described in
 *               docs/json.md. *result is overwritten, not freed. result may be NULL.
 * Outputs:      *client, *batch, *full, *what and *sandbox are written only on success.
 * Handles:      every handle but gca_reply may be used by any number of threads at the same time. Freeing one ends that:
 *               no other call may use it then or later, nor may it be freed twice. NULL as a handle is
 *               GCA_INVALID_INPUT; every ..._free(NULL), gca_cancel_trigger(NULL) and gca_batch_cancel(NULL) do nothing.
 * Panics:       nothing unwinds out of the library. A defect inside it is GCA_INTERNAL.
 * Unloading:    the library stays loaded after dlclose, since threads that called it may still end.
 *
 * CANCELLING
 *
 * A call that was given a gca_cancel ends with GCA_CANCELLED once the flag is set: at once before its first request, within
 * a tenth of a second in a wait (for a retry, the rate limit, the conversation's turn), and otherwise when the request in
 * flight was answered or has timed out. That is 55 s at most with the default timeouts; shorter ones are set by "timeouts".
 * No request is sent after that. The error's "mayHaveApplied" says whether a write had been sent whose outcome is unknown.
 *
 * CALLBACKS
 *
 * A callback returns normally: no exception may leave it, and no longjmp. The strings that it gets are the library's,
 * and live until it returns. userdata is handed through; it must live, and bear use from the threads named here, until
 * the call that takes it has returned, or for gca_callbacks until gca_client_free has, or for gca_set_logger until another
 * callback or NULL was set.
 *
 *   callback    thread                                at once             may call
 *   on_update   the one that updates, or of a batch   yes, on any thread  all but gca_flush; see below for an update
 *   on_audit    the same                              yes, on any thread  all but gca_update and gca_update_with on the
 *                                                                         same client, gca_batch, gca_batch_start, gca_flush
 *   compute     the one that called gca_update_with   no                  the same as on_audit, and gca_reply_...
 *   next_line,  the one that called gca_batch         no                  all
 *   on_outcome
 *   log         any that logs                         yes, on any thread  gca_string_free, gca_status_name, gca_version,
 *                                                                         gca_cancel_...
 *
 * "All" leaves out freeing what is in use. What may not be called is answered by GCA_INVALID_INPUT, not by a deadlock. That
 * includes languages that run a callback on another thread than the one that called: while a compute or on_audit callback
 * holds a conversation, gca_update and gca_update_with of the same conversation wait for that callback, and are refused
 * after 5 s, since the callback may be waiting for them. That error has "transient":true.
 *
 * An update in on_update calls on_update too: guard against a loop. Where 16 updates are inside of each other on one
 * thread, gca_update, gca_update_with, gca_batch and gca_batch_start are GCA_INVALID_INPUT.
 */
#ifndef GENESYS_ATTRIBUTES_H
#define GENESYS_ATTRIBUTES_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Status codes: stable, and no number is used again for something else. The names of the kinds in JSON are those of
 * gca_status_name. */
enum {
    GCA_OK = 0,
    GCA_INVALID_INPUT = 1,      /* the input is wrong, and was not sent or was refused; see "violations" */
    GCA_CONFIG = 2,             /* a setting is missing or wrong */
    GCA_AUTH = 3,               /* the credentials or the token were refused */
    GCA_FORBIDDEN = 4,          /* they may not do this; see "missingPermissions" */
    GCA_NOT_FOUND = 5,          /* there is no such conversation, participant or record */
    GCA_CONFLICT = 6,           /* another writer changed it, and retrying did not settle it */
    GCA_RATE_LIMITED = 7,       /* asked to wait for longer than allowed; see "retryAfterSeconds" */
    GCA_TIMEOUT = 8,            /* a time limit passed */
    GCA_CONNECT = 9,            /* no connection; nothing was sent */
    GCA_TRANSPORT = 10,         /* the connection failed after something may have been sent */
    GCA_SERVER = 11,            /* the platform failed (5xx) */
    GCA_PROTOCOL = 12,          /* an answer that cannot be used */
    GCA_PAYLOAD_TOO_LARGE = 13, /* the body is larger than the platform takes */
    GCA_AUDIT = 14,             /* a strict audit could not be kept, so nothing was written */
    GCA_CANCELLED = 15,         /* ended by the caller */
    GCA_INTERNAL = 255          /* a defect of the library */
};

typedef struct gca_client gca_client;
typedef struct gca_cancel gca_cancel;
typedef struct gca_batch_run gca_batch_run;
typedef struct gca_reply gca_reply; /* only inside of the compute callback that got it */

typedef struct gca_callbacks {
    size_t size;    /* sizeof(gca_callbacks): later versions add fields at the end */
    void *userdata; /* handed to both */
    /* With every update that was applied, after it: the event as JSON. */
    void (*on_update)(void *userdata, const char *event_json);
    /* Before the first write of an update and after its end: the audit record as JSON. */
    void (*on_audit)(void *userdata, const char *record_json);
} gca_callbacks;

/* The library's version, such as "0.1.0". Static: not to be freed. */
const char *gca_version(void);

/* The name of a status, such as "ok" or "rateLimited"; "unknown" for other numbers. Static: not to be freed. */
const char *gca_status_name(int status);

/* Frees a text that *result got. The text must be unchanged: its length is looked for again. */
void gca_string_free(char *text);

/* Makes a client. No request is sent before its first use.
 *
 * config_json: a JSON object with any of the settings region, clientId, clientSecret, accessToken, baseUrl, loginUrl,
 * allowHttp, ratePerMinute (0: no limit), retry {maxAttempts, maxConflicts, deadlineSeconds, maxRetryAfterSeconds,
 * backoffBaseMs, backoffMaxMs}, timeouts {resolveSeconds, connectSeconds, sendSeconds, responseSeconds, bodySeconds},
 * validationLimits {keyLength, stringLength, integerMax, bodyBytes}, schema (an object: rules of your own for keys and
 * values), audit {file, strict, values, secureValues}, metadataSource, endedConversations ("allow", "warn" or "refuse"),
 * secureValuesInEvents, proxy (a URL, or false for none), rootCertificatesFile, rootCertificates (PEM),
 * clientCertificateFile, clientKeyFile, maxIdleConnections, maxResponseBody, userAgent, versionCache, jitterSeed (for
 * tests), webhook {url, proxy, rootCertificatesFile, rootCertificates, timeouts} (read by the program). Unknown fields are
 * refused.
 *
 * Where region and credentials are all left out, they come from the environment: GENESYS_CLOUD_REGION,
 * GENESYS_CLOUD_CLIENT_ID and GENESYS_CLOUD_CLIENT_SECRET, or, where none of these is set, GENESYSCLOUD_REGION with
 * GENESYSCLOUD_ACCESS_TOKEN or with GENESYSCLOUD_OAUTHCLIENT_ID and GENESYSCLOUD_OAUTHCLIENT_SECRET; with both goes
 * GENESYS_CLOUD_BASE_URL, and GENESYS_CLOUD_LOGIN_URL. NULL is the same as "{}".
 *
 * callbacks: read before the function returns, not kept. It, and each callback in it, may be NULL.
 *
 * GCA_CONFIG: a setting is missing or wrong. */
int gca_client_new(const char *config_json, const gca_callbacks *callbacks, gca_client **client, char **result);

/* Frees a client, when no call that uses it is under way and every gca_batch_run of it is freed. */
void gca_client_free(gca_client *client);

/* Changes attributes, and waits until that is settled. update_json is the record of a batch:
 *
 *     {"conversationId":"...", "attributes":{"key":"value", "n":1}}
 *
 * with "participant":"customer" (a purpose, or an id), "target":"secure" or "target":"custom","record":"..." for the
 * other stores, and optionally "remove", "ifVersion", "skipUnchanged", "unlocked", "schema" and "verify" (read it back).
 *
 * cancel: may be NULL; see "Cancelling" above.
 * *result: the receipt. An error with "mayHaveApplied":true leaves open whether the change is in place. */
int gca_update(gca_client *client, const char *update_json, gca_cancel *cancel, char **result);

/* Reads, computes and writes under the lock of the target. target_json is an update without what to write and how:
 * {"conversationId":"...", "target":"secure"}, and "unlocked" or "schema" at most.
 *
 * compute gets the snapshot that gca_read gives, and calls gca_reply_set with the attributes to set. It is called again
 * after a conflict. When it does not call it, nothing is changed, and the receipt says "unchanged". When it returns
 * other than 0, nothing is written and the status is GCA_CANCELLED. */
int gca_update_with(gca_client *client, const char *target_json,
                    int (*compute)(void *userdata, const char *snapshot_json, gca_reply *reply), void *userdata,
                    gca_cancel *cancel, char **result);

/* Says what to set: a JSON object. The last call counts. What is not a JSON object is GCA_INVALID_INPUT, and so is the
 * update then. */
int gca_reply_set(gca_reply *reply, const char *attributes_json);

/* Says that a key is to be removed, beside what gca_reply_set sets. Secure attributes only, as in an update. */
int gca_reply_remove(gca_reply *reply, const char *key);

/* Reads a target's attributes and version: one request. *result: the snapshot. */
int gca_read(gca_client *client, const char *target_json, gca_cancel *cancel, char **result);

/* Reads who takes part in a conversation, or did: one request. *result: a JSON list of participants. */
int gca_participants(gca_client *client, const char *conversation_id, gca_cancel *cancel, char **result);

/* Reads what the target of an update holds now, after all checks that the update would make before its first write.
 * Nothing is written. *result: the snapshot. */
int gca_preview(gca_client *client, const char *update_json, gca_cancel *cancel, char **result);

/* Checks an update against the client's limits, without any request. */
int gca_validate(gca_client *client, const char *update_json, char **result);

/* Logs in if need be, and asks whose token it is. *result: organization, OAuth client and the end of the token. */
int gca_verify_credentials(gca_client *client, gca_cancel *cancel, char **result);

/* What the client did so far. *result: JSON. */
int gca_metrics(gca_client *client, char **result);

/* The same in the text format of Prometheus. *result: that text, and JSON only for an error. */
int gca_metrics_prometheus(gca_client *client, char **result);

/* Waits until no update of the client is under way, and flushes the audit file. GCA_TIMEOUT: some still are. */
int gca_flush(gca_client *client, unsigned timeout_ms, gca_cancel *cancel, char **result);

/* Runs many updates on threads of the library, those of one conversation in order, and returns when all are done. Both
 * callbacks are called on the calling thread, one at a time.
 *
 * options_json: {"workers":8, "stopAfter":100, "maxOutageSeconds":60}; 1 worker, no limit of failures and 600 s by default.
 * NULL is the same as "{}". "journal":"done.jsonl" keeps each outcome in that file, and goes on with what earlier batches left in
 * it: lines that are done don't run again, and a line that was applied and has changed is an error before anything is sent.
 * The report's "stopped" is then "journal". "retryFailed":true runs lines again that failed for good.
 * next_line: gives one update as JSON with each call, and NULL at the end; it is not called again then. The text must
 * stay as it is until the next call, or until gca_batch returns. A line that is no update fails alone. While next_line runs,
 * no outcome is handed over.
 * on_outcome: may be NULL. Gets what came of each line, as JSON, as lines complete. Other than 0 stops the batch: updates
 * under way end at their next wait or request; their outcomes are neither handed over nor in the report, though their
 * changes may be in place.
 * cancel: may be NULL. Once it is triggered, nothing new is begun, and updates under way end as "Cancelling" says. A
 * next_line that is running is waited for.
 * *result: the report. Lines that failed, and an early end (its "stopped"), are in the report: the status is GCA_OK.
 * GCA_CONFIG: the system has no thread for it. */
int gca_batch(gca_client *client, const char *options_json, const char *(*next_line)(void *userdata),
              int (*on_outcome)(void *userdata, const char *outcome_json), void *userdata, gca_cancel *cancel,
              char **result);

/* The same without callbacks, for languages with one thread and for event loops:
 *
 *     gca_batch_start(client, "{\"workers\":8}", &batch, &result);
 *     while (what != GCA_BATCH_REPORT) {
 *         if (there is a line) gca_batch_push(batch, line, NULL, &full, &result);
 *         if (that was the last one) gca_batch_finish(batch, &result);
 *         gca_batch_next(batch, full || that was the last one ? 1000 : 0, &what, &result);
 *     }
 *     gca_batch_free(batch);
 *
 * with each status looked at, each result freed, and a line pushed again that met a full batch. */
int gca_batch_start(gca_client *client, const char *options_json, gca_batch_run **batch, char **result);

/* Gives a line to the batch and returns at once. Lines count from 1 as they are taken. A line that is no update fails alone.
 *
 * tag: may be NULL. The line's outcome has it as "tag".
 * *full: 0 if the line was taken. 1 if it was not: call gca_batch_next, then push the line again.
 * GCA_INVALID_INPUT: the batch was finished, or its report was given. */
int gca_batch_push(gca_batch_run *batch, const char *line, const char *tag, int *full, char **result);

/* What *result is after gca_batch_next. */
enum {
    GCA_BATCH_NOTHING = 0, /* {}: nothing happened in time */
    GCA_BATCH_OUTCOME = 1, /* the outcome of a line */
    GCA_BATCH_NOTICE = 2,  /* a notice about the batch as a whole, such as an outage: for those who watch it */
    GCA_BATCH_REPORT = 3   /* the report: the batch has ended, and all outcomes were given */
};

/* Waits for what comes next, for timeout_ms at most (0: does not wait). A batch whose outcomes are not asked for pauses.
 * After the report, it is given again. GCA_CONFIG: the system had no thread for the batch, which has ended. */
int gca_batch_next(gca_batch_run *batch, unsigned timeout_ms, int *what, char **result);

/* Says that no more lines come. */
int gca_batch_finish(gca_batch_run *batch, char **result);

/* Ends the batch early: nothing new is begun, and updates under way end as "Cancelling" says. gca_batch_next gives the
 * outcomes that are left and then the report. From any thread and callback, but not from a signal handler. */
void gca_batch_cancel(gca_batch_run *batch);

/* Frees a batch. One that has not ended is cancelled, and its updates under way are waited for, except from inside of a
 * callback of its client's updates. */
void gca_batch_free(gca_batch_run *batch);

/* A flag that ends the calls that it is given to. It is set once and for all, and may end any number of calls. */
gca_cancel *gca_cancel_new(void);

/* Sets the flag. From any thread and callback, but not from a signal handler. */
void gca_cancel_trigger(gca_cancel *cancel);

/* Frees the flag, when no call that uses it is under way. */
void gca_cancel_free(gca_cancel *cancel);

/* Sends the library's log records to log, in place of the callback before, if there is one; NULL sends them nowhere, as at
 * the start. It waits for calls of the callback before, which is not called any more then. GCA_CONFIG: the process has
 * another logger, as a program in Rust may. Levels: 1 error, 2 warning, 3 info, 4 debug (each request's method, URL and
 * status), 5 trace; max_level is the highest that is sent, 0 for none. Secrets and tokens are in none of them, nor are
 * attribute values, but for what the platform's own text quotes in part or in another encoding. What the log callback makes
 * the library log is dropped. */
int gca_set_logger(void (*log)(void *userdata, int level, const char *target, const char *message), void *userdata,
                   int max_level);

#ifdef GENESYS_ATTRIBUTES_TESTING
/* A stand-in for the platform, to test your own code with: only in a library that is built with the features
 * capi,testing. It keeps what is written in memory and listens on a port of this machine. */
typedef struct gca_sandbox gca_sandbox;

/* Starts one. options_json: {"port":8080}, 0 or left out for a free port; NULL is the same as "{}". *result: settings for
 * gca_client_new, without a rate limit. */
int gca_sandbox_start(const char *options_json, gca_sandbox **sandbox, char **result);

/* Adds a conversation with the participants "<id>-agent" and "<id>-customer", or empties one. */
int gca_sandbox_add(gca_sandbox *sandbox, const char *conversation_id, char **result);

/* Answers the next request with this status, 400 to 599, without doing it. 0: does the next write and loses its answer. */
int gca_sandbox_fail_next(gca_sandbox *sandbox, int http_status, char **result);

/* Ends it. */
void gca_sandbox_free(gca_sandbox *sandbox);
#endif

#ifdef __cplusplus
}
#endif

#endif
