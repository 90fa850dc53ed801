/* The thread pool. The caller of lt_engine_run is one of the threads; the others wait at the `start` gate.
 *
 * Within a stage, threads take ranges of its parts from a shared counter until none is left, so a thread that
 * the machine slows down takes fewer. Whoever arrives last at the barrier alone prepares the next stage and then
 * opens the gate: everything it writes is seen by all, and all see the same decision to go on or to stop.
 */
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "engine.h"
#include "gate.h"

enum { SPINS = 2000, RANGES_PER_THREAD = 4, STACK_BYTES = 1 << 20 };

struct lt_engine {
    int32_t threads;
    uint32_t features;
    int32_t spins;
    pthread_mutex_t turn; /* held while a job runs */
    pthread_t *workers;   /* threads - 1 */
    int32_t started;      /* workers that exist */

    lt_gate start;   /* opened for every job, and once more to end the workers */
    lt_gate barrier; /* opened after every stage */
    const lt_job *job; /* NULL: end */
    atomic_int arrived;

    /* The running stage; written only between its barriers. */
    int32_t stage, units, range;
    atomic_int next; /* the first part that nobody has taken */
    int32_t result;
    int64_t stage_began;
};

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void prepare_stage(lt_engine *e, int32_t stage) {
    const lt_step *step = e->job->step;
    if (step->cancel && __atomic_load_n(step->cancel, __ATOMIC_RELAXED)) {
        e->result = LT_CANCELLED;
        stage = e->job->n_stages;
    }
    e->stage = stage;
    if (stage == e->job->n_stages) return;
    e->units = e->job->units(e->job, stage);
    e->range = e->units / (e->threads * RANGES_PER_THREAD);
    if (e->range < 1) e->range = 1;
    atomic_store_explicit(&e->next, 0, memory_order_relaxed);
    if (step->stage_ns) e->stage_began = now_ns();
}

static void run_stage(lt_engine *e) {
    for (;;) {
        int32_t begin = atomic_fetch_add_explicit(&e->next, e->range, memory_order_relaxed);
        if (begin >= e->units) return;
        int32_t end = e->units - begin < e->range ? e->units : begin + e->range;
        e->job->run(e->job, e->stage, begin, end);
    }
}

/* Waits for all threads. The last one to arrive runs `alone` before it lets the others go. */
static void barrier(lt_engine *e, void (*alone)(lt_engine *)) {
    unsigned seen = lt_gate_seen(&e->barrier);
    if (atomic_fetch_add(&e->arrived, 1) + 1 < e->threads) {
        lt_gate_wait(&e->barrier, seen, e->spins);
        return;
    }
    atomic_store(&e->arrived, 0);
    alone(e);
    lt_gate_open(&e->barrier);
}

static void next_stage(lt_engine *e) {
    int64_t *stage_ns = e->job->step->stage_ns;
    if (stage_ns) stage_ns[e->stage] += now_ns() - e->stage_began;
    prepare_stage(e, e->stage + 1);
}

static void nothing(lt_engine *e) { (void)e; }

static void walk(lt_engine *e) {
    while (e->stage < e->job->n_stages) {
        run_stage(e);
        barrier(e, next_stage);
    }
    barrier(e, nothing); /* nobody reads the job any more: the caller may let it go */
}

static void *worker(void *engine) {
    lt_engine *e = engine;
    for (unsigned jobs = 0;; jobs++) {
        lt_gate_wait(&e->start, jobs, e->spins);
        if (e->job == NULL) return NULL;
        walk(e);
    }
}

int32_t lt_engine_run(lt_engine *e, const lt_job *job) {
    pthread_mutex_lock(&e->turn);
    e->job = job;
    e->result = LT_OK;
    prepare_stage(e, 0);
    lt_gate_open(&e->start);
    walk(e);
    int32_t result = e->result;
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
    if (threads < 1 || threads > 1024) return LT_BAD_ARGUMENT;
    lt_engine *e = calloc(1, sizeof *e);
    if (e == NULL) return LT_NO_MEMORY;
    e->threads = threads;
    e->features = features & lt_cpu_features();
    e->spins = threads <= sysconf(_SC_NPROCESSORS_ONLN) ? SPINS : 1;
    e->workers = calloc((size_t)threads, sizeof *e->workers);
    if (e->workers == NULL) goto no_workers;
    if (pthread_mutex_init(&e->turn, NULL)) goto no_turn;
    if (lt_gate_init(&e->start)) goto no_start;
    if (lt_gate_init(&e->barrier)) goto no_barrier;
    if (start_workers(e)) {
        lt_engine_free(e);
        return LT_NO_THREAD;
    }
    *engine = e;
    return LT_OK;

no_barrier:
    lt_gate_destroy(&e->start);
no_start:
    pthread_mutex_destroy(&e->turn);
no_turn:
    free(e->workers);
no_workers:
    free(e);
    return LT_NO_MEMORY;
}

void lt_engine_free(lt_engine *e) {
    if (e == NULL) return;
    e->job = NULL;
    lt_gate_open(&e->start);
    for (int32_t i = 0; i < e->started; i++) pthread_join(e->workers[i], NULL);
    lt_gate_destroy(&e->barrier);
    lt_gate_destroy(&e->start);
    pthread_mutex_destroy(&e->turn);
    free(e->workers);
    free(e);
}

uint32_t lt_engine_features(const lt_engine *e) { return e->features; }
