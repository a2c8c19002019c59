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
 * Results:      such a function gives in *result a text that the caller frees by gca_string_free: the answer on GCA_OK
 *               ("{}" where there is nothing to say), else the error, a JSON object with "kind", "message", "violations"
 *               and, where they are known, "httpStatus", "code", "correlationId", "retryAfterSeconds",
 *               "missingPermissions" and "mayHaveApplied": the one that the program prints with --json. *result is
 *               overwritten, not freed. result may be NULL.
 * Outputs:      *client is written only on success.
 * Handles:      gca_client and gca_cancel may be used by any number of threads at the same time. Freeing one ends that:
 *               no other call may use it then or later, nor may it be freed twice. NULL as a handle is
 *               GCA_INVALID_INPUT; every ..._free(NULL) does nothing.
 * Fork:         a child that is forked must make clients of its own: a call with one that was made before the fork is
 *               GCA_CONFIG, before anything is sent. gca_client_free and gca_cancel_free of one return at once there,
 *               and what it holds stays allocated.
 * Panics:       nothing unwinds out of the library. A defect inside it is GCA_INTERNAL.
 *
 * CALLBACKS
 *
 * A callback returns normally: no exception may leave it, and no longjmp. The strings that it gets are the library's,
 * and live until it returns. userdata is handed through; it must live, and bear use from the threads named here, until
 * the call that takes it has returned, or for gca_callbacks until gca_client_free has, or for gca_set_logger for ever.
 *
 *   callback    thread                                at once             may call
 *   on_update   the one that updates, or of a batch   yes, on any thread  all but gca_flush; see below for an update
 *   on_audit    the same                              yes, on any thread  all but gca_update, gca_update_with on the same
 *                                                                         client, gca_batch and gca_flush
 *   compute     the one that called gca_update_with   no                  the same as on_audit, and gca_reply_set
 *   next_line   one of the batch, not always the same no, but beside      all
 *                                                     on_outcome
 *   on_outcome  the one that called gca_batch         no, but beside      all
 *                                                     next_line
 *   log         any that logs                         yes, on any thread  gca_string_free, gca_status_name, gca_version,
 *                                                                         gca_cancel_...
 *
 * "All" leaves out gca_client_free and gca_cancel_free of what is in use. What may not be called is answered by
 * GCA_INVALID_INPUT, not by a deadlock. A compute callback must not wait for another thread's update of the same
 * conversation either, which waits for it. The callbacks of a batch that a callback runs may not call more than that
 * callback.
 *
 * An update in on_update calls on_update too, and so does a batch: guard against a loop. Where 16 callbacks are inside of
 * each other, gca_update, gca_update_with and gca_batch are GCA_INVALID_INPUT; the on_update calls of a batch have
 * threads of their own, and begin to count anew.
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
    GCA_CONFLICT = 6,           /* somebody else changed it, and retrying did not settle it */
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

typedef struct gca_client gca_client; /* any thread, any number of threads */
typedef struct gca_cancel gca_cancel; /* any thread, any number of threads */
typedef struct gca_reply gca_reply;   /* only inside of the compute callback that got it */

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
 * maxIdleConnections, maxResponseBody, userAgent, versionCache, jitterSeed (for tests). Unknown fields are refused.
 *
 * Where region and credentials are all left out, they come from the environment: GENESYS_CLOUD_REGION,
 * GENESYS_CLOUD_CLIENT_ID and GENESYS_CLOUD_CLIENT_SECRET, or, where none of these is set, GENESYSCLOUD_REGION with
 * GENESYSCLOUD_ACCESS_TOKEN or with GENESYSCLOUD_OAUTHCLIENT_ID and GENESYSCLOUD_OAUTHCLIENT_SECRET; with both goes
 * GENESYS_CLOUD_BASE_URL. NULL is the same as "{}".
 *
 * callbacks: read before the function returns, not kept. It, and each callback in it, may be NULL.
 *
 * GCA_CONFIG: a setting is missing or wrong. */
int gca_client_new(const char *config_json, const gca_callbacks *callbacks, gca_client **client, char **result);

/* Frees a client, when no call that uses it is under way. */
void gca_client_free(gca_client *client);

/* Changes attributes, and waits until that is settled. update_json is the record of a batch:
 *
 *     {"conversationId":"...", "attributes":{"key":"value", "n":1}}
 *
 * with "participant":"customer" (a purpose, or an id), "target":"secure" or "target":"custom","record":"..." for the
 * other stores, and optionally "remove", "ifVersion", "skipUnchanged", "unlocked", "schema" and "verify" (read it back).
 *
 * cancel: may be NULL. Once it is triggered, the update ends at its next wait or request with GCA_CANCELLED.
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

/* Reads a target's attributes and version: one request. *result: the snapshot. */
int gca_read(gca_client *client, const char *target_json, char **result);

/* Checks an update against the client's limits, without any request. */
int gca_validate(gca_client *client, const char *update_json, char **result);

/* Logs in if need be, and asks whose token it is. *result: organization, OAuth client and the end of the token. */
int gca_verify_credentials(gca_client *client, char **result);

/* What the client did so far. *result: JSON. */
int gca_metrics(gca_client *client, char **result);

/* The same in the text format of Prometheus. *result: that text, and JSON only for an error. */
int gca_metrics_prometheus(gca_client *client, char **result);

/* Waits until no update of the client is under way, and flushes the audit file. GCA_TIMEOUT: some still are. */
int gca_flush(gca_client *client, unsigned timeout_ms, char **result);

/* Runs many updates on threads of its own, those of one conversation in order, and returns when all are done.
 *
 * options_json: {"workers":8, "stopAfter":100, "maxOutageSeconds":60}; 1 worker, no limit of failures and 600 s by default. NULL is the same as "{}".
 * next_line: gives one update as JSON with each call, and NULL at the end; it is not called again then. The text must
 * stay as it is until the next call, or until gca_batch returns. A line that is no update fails alone.
 * on_outcome: may be NULL. Gets what came of each line, as JSON, as lines complete. Other than 0 stops the batch: updates
 * under way end at their next wait or request; their outcomes are neither handed over nor in the report, though their
 * changes may be in place.
 * cancel: may be NULL. Once it is triggered, updates end at their next wait or request, and nothing new is begun; a
 * next_line that is running is waited for.
 * *result: the report. Lines that failed, and an early end (its "stopped"), are in the report: the status is GCA_OK.
 * GCA_CONFIG: the system has no thread for it. */
int gca_batch(gca_client *client, const char *options_json, const char *(*next_line)(void *userdata),
              int (*on_outcome)(void *userdata, const char *outcome_json), void *userdata, gca_cancel *cancel,
              char **result);

/* A flag that ends what was given it. It is set once and for all, and may end any number of calls. */
gca_cancel *gca_cancel_new(void);

/* Sets the flag. From any thread and callback, but not from a signal handler. */
void gca_cancel_trigger(gca_cancel *cancel);

/* Frees the flag, when no call that uses it is under way. */
void gca_cancel_free(gca_cancel *cancel);

/* Sends the library's log records to log: once for the process; GCA_CONFIG the second time. Without it nothing is
 * logged. Levels: 1 error, 2 warning, 3 info, 4 debug (each request's method, URL and status), 5 trace; max_level is the
 * highest that is sent, 0 for none. Secrets and tokens are in none of them, nor are attribute values, but for what the
 * platform's own text quotes in part or in another encoding. What the log callback makes the library log is dropped. */
int gca_set_logger(void (*log)(void *userdata, int level, const char *target, const char *message), void *userdata,
                   int max_level);

#ifdef __cplusplus
}
#endif

#endif
