/* The thread pool. The caller of lt_engine_run is one of the threads; the others look for work, or sleep.
 *
 * A stage's parts are cut into ranges, and a thread that wants one draws a ticket: it adds 1 to a word that holds
 * the stage's number, how many ranges there are, and how many tickets were drawn. A ticket below the number of
 * ranges keeps its stage open, so whoever holds one may read the stage and the job. Whoever finishes the last range
 * alone prepares the next stage and publishes it.
 *
 * So nobody waits for a thread, only for ranges: one that the machine has put aside, or that is asleep, holds up
 * nothing as long as it holds no ticket. And a job ends when its last range does: no thread looks at it any more.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "engine.h"

/* A kernel takes up to 264 KB of a thread's stack, the thread sanitizer 770 for itself. */
enum { SPINS = 2000, RANGES_PER_THREAD = 4, MAX_THREADS = 1024, STACK_BYTES = 1 << 21 };

struct lt_engine {
    int32_t threads;
    uint32_t features;
    int32_t spins;
    pthread_mutex_t turn; /* held while a job runs */
    pthread_t *workers;   /* threads - 1 */
    int32_t started;      /* workers that exist */

    _Atomic uint64_t tickets; /* stage number << 32 | ranges << 16 | drawn */
    atomic_int finished;      /* ranges of the running stage */

    /* Written only while no ticket is out. */
    const lt_job *job;
    int32_t stage, units, ranges;
    int32_t result;
    int64_t stage_began;

    /* For threads that have looked for work long enough. */
    pthread_mutex_t bed;
    pthread_cond_t wake;
    atomic_int sleepers;
    atomic_int ending;
};

static uint32_t number_of(uint64_t tickets) { return (uint32_t)(tickets >> 32); }
static int32_t ranges_of(uint64_t tickets) { return (int32_t)(tickets >> 16 & 0xffff); }
static int32_t drawn_of(uint64_t tickets) { return (int32_t)(tickets & 0xffff); }
static int has_range(uint64_t ticket) { return drawn_of(ticket) < ranges_of(ticket); }

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static inline void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory"); /* `yield` returns at once on most cores */
#endif
}

/* Either the publisher sees the sleeper or the sleeper sees what was published: both write first, then read, all
 * sequentially consistent. The mutex closes the window between a sleeper's last look and its sleep. */
static void publish(lt_engine *e, int32_t ranges) {
    const uint32_t number = number_of(atomic_load(&e->tickets)) + 1; /* wraps, after some days */
    atomic_store(&e->tickets, (uint64_t)number << 32 | (uint64_t)ranges << 16);
    if (atomic_load(&e->sleepers) == 0) return;
    pthread_mutex_lock(&e->bed);
    pthread_cond_broadcast(&e->wake);
    pthread_mutex_unlock(&e->bed);
}

static void await_publication(lt_engine *e, uint32_t number) {
    for (int32_t i = 0; i < e->spins; i++) {
        if (number_of(atomic_load_explicit(&e->tickets, memory_order_acquire)) != number) return;
        relax();
    }
    pthread_mutex_lock(&e->bed);
    atomic_fetch_add(&e->sleepers, 1);
    /* Who draws the engine's last ticket, having looked whether it ends just before it did, would sleep for good. */
    while (number_of(atomic_load(&e->tickets)) == number && !atomic_load(&e->ending))
        pthread_cond_wait(&e->wake, &e->bed);
    atomic_fetch_sub(&e->sleepers, 1);
    pthread_mutex_unlock(&e->bed);
}

/* Publishes the first stage from this one on that has any parts, or the job's end. No ticket is out. */
static void begin_stage(lt_engine *e, int32_t stage) {
    const lt_step *step = e->job->step;
    if (step->cancel && __atomic_load_n(step->cancel, __ATOMIC_RELAXED)) {
        e->result = LT_CANCELLED;
        stage = e->job->n_stages;
    }
    for (e->units = 0; stage < e->job->n_stages; stage++)
        if ((e->units = e->job->units(e->job, stage)) > 0) break;
    const int32_t most = e->threads * RANGES_PER_THREAD;
    e->stage = stage;
    e->ranges = e->units < most ? e->units : most;
    atomic_store_explicit(&e->finished, 0, memory_order_relaxed);
    if (step->stage_ns) e->stage_began = now_ns();
    publish(e, e->ranges);
}

static void end_stage(lt_engine *e) {
    int64_t *stage_ns = e->job->step->stage_ns;
    if (stage_ns) stage_ns[e->stage] += now_ns() - e->stage_began;
    begin_stage(e, e->stage + 1);
}

static void run_range(lt_engine *e, int32_t i) {
    const int32_t ranges = e->ranges; /* once this one is finished, another thread may change it */
    const int32_t begin = (int32_t)((int64_t)e->units * i / ranges);
    const int32_t end = (int32_t)((int64_t)e->units * (i + 1) / ranges);
    e->job->run(e->job, e->stage, begin, end);
    if (atomic_fetch_add(&e->finished, 1) + 1 == ranges) end_stage(e);
}

/* Draws one ticket, and runs its range if it has one. */
static uint64_t work(lt_engine *e) {
    const uint64_t ticket = atomic_fetch_add(&e->tickets, 1);
    if (has_range(ticket)) run_range(e, drawn_of(ticket));
    return ticket;
}

static void *worker(void *engine) {
    lt_engine *e = engine;
    while (!atomic_load(&e->ending)) {
        const uint64_t ticket = work(e);
        if (!has_range(ticket)) await_publication(e, number_of(ticket));
    }
    return NULL;
}

int32_t lt_engine_run(lt_engine *e, const lt_job *job) {
    pthread_mutex_lock(&e->turn);
    e->job = job;
    e->result = LT_OK;
    begin_stage(e, 0);
    for (;;) {
        const uint64_t ticket = work(e);
        if (has_range(ticket)) continue;
        if (ranges_of(ticket) == 0) break; /* the end was published */
        await_publication(e, number_of(ticket));
    }
    const int32_t result = e->result;
    pthread_mutex_unlock(&e->turn);
    return result;
}

static int start_workers(lt_engine *e) {
    pthread_attr_t attributes;
    if (pthread_attr_init(&attributes)) return -1;
    pthread_attr_setstacksize(&attributes, STACK_BYTES);
    for (; e->started < e->threads - 1; e->started++)
        if (pthread_create(&e->workers[e->started], &attributes, worker, e)) break;
    pthread_attr_destroy(&attributes);
    return e->started == e->threads - 1 ? 0 : -1;
}

int32_t lt_engine_new(int32_t threads, uint32_t features, lt_engine **engine) {
    if (threads < 1 || threads > MAX_THREADS) return LT_BAD_ARGUMENT;
    lt_engine *e = calloc(1, sizeof *e);
    if (e == NULL) return LT_NO_MEMORY;
    e->threads = threads;
    e->features = features & lt_cpu_features();
    e->spins = threads <= sysconf(_SC_NPROCESSORS_ONLN) ? SPINS : 1;
    atomic_init(&e->tickets, 0);
    e->workers = calloc((size_t)threads, sizeof *e->workers);
    if (e->workers == NULL) goto no_workers;
    if (pthread_mutex_init(&e->turn, NULL)) goto no_turn;
    if (pthread_mutex_init(&e->bed, NULL)) goto no_bed;
    if (pthread_cond_init(&e->wake, NULL)) goto no_wake;
    if (start_workers(e)) {
        lt_engine_free(e);
        return LT_NO_THREAD;
    }
    *engine = e;
    return LT_OK;

no_wake:
    pthread_mutex_destroy(&e->bed);
no_bed:
    pthread_mutex_destroy(&e->turn);
no_turn:
    free(e->workers);
no_workers:
    free(e);
    return LT_NO_MEMORY;
}

void lt_engine_free(lt_engine *e) {
    if (e == NULL) return;
    atomic_store(&e->ending, 1);
    publish(e, 0);
    for (int32_t i = 0; i < e->started; i++) pthread_join(e->workers[i], NULL);
    pthread_cond_destroy(&e->wake);
    pthread_mutex_destroy(&e->bed);
    pthread_mutex_destroy(&e->turn);
    free(e->workers);
    free(e);
}

uint32_t lt_engine_features(const lt_engine *e) { return e->features; }
