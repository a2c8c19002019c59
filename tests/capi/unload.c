/* Loads the library, calls it from threads that end after dlclose, and unloads it; many times. */
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#define ROUNDS 200
#define THREADS 4

static void *(*cancel_new)(void);
static void (*cancel_free)(void *);
static int (*client_new)(const char *, const void *, void **, char **);
static void (*client_free)(void *);
static int (*client_update)(void *, const char *, void *, char **);
static void (*string_free)(char *);

struct gate {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int called;
    int closed;
};

static void pass(struct gate *gate) {
    pthread_mutex_lock(&gate->lock);
    gate->called += 1;
    pthread_cond_broadcast(&gate->changed);
    while (!gate->closed) pthread_cond_wait(&gate->changed, &gate->lock);
    pthread_mutex_unlock(&gate->lock);
}

static void *work(void *argument) {
    const char *config = "{\"baseUrl\":\"http://127.0.0.1:1\",\"accessToken\":\"t\",\"retry\":{\"maxAttempts\":1}}";
    void *client = NULL, *cancel = cancel_new();
    char *result = NULL;
    if (client_new(config, NULL, &client, &result) != 0) exit(3);
    string_free(result);
    /* GCA_CONNECT: nothing listens there. */
    if (client_update(client, "{\"conversationId\":\"c\",\"target\":\"conversation\",\"attributes\":{\"n\":1}}", cancel, &result) != 9) exit(4);
    string_free(result);
    client_free(client);
    cancel_free(cancel);
    pass(argument);
    return NULL; /* The destructors of the library's thread-locals run now. */
}

static void *symbol(void *library, const char *name) {
    void *found = dlsym(library, name);
    if (found == NULL) exit(2);
    return found;
}

int main(int argc, char **argv) {
    int round, i;
    if (argc != 2) return 2;
    for (round = 0; round < ROUNDS; round++) {
        struct gate gate = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0, 0};
        pthread_t threads[THREADS];
        void *library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL);
        if (library == NULL) {
            fprintf(stderr, "%s\n", dlerror());
            return 1;
        }
        *(void **)&cancel_new = symbol(library, "gca_cancel_new");
        *(void **)&cancel_free = symbol(library, "gca_cancel_free");
        *(void **)&client_new = symbol(library, "gca_client_new");
        *(void **)&client_free = symbol(library, "gca_client_free");
        *(void **)&client_update = symbol(library, "gca_update");
        *(void **)&string_free = symbol(library, "gca_string_free");
        for (i = 0; i < THREADS; i++) {
            if (pthread_create(&threads[i], NULL, work, &gate) != 0) return 1;
        }
        pthread_mutex_lock(&gate.lock);
        while (gate.called < THREADS) pthread_cond_wait(&gate.changed, &gate.lock);
        dlclose(library);
        gate.closed = 1;
        pthread_cond_broadcast(&gate.changed);
        pthread_mutex_unlock(&gate.lock);
        for (i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
    }
    puts("all done");
    return 0;
}
