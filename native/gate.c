#include "gate.h"

int lt_gate_init(lt_gate *gate) {
    atomic_init(&gate->opened, 0);
    atomic_init(&gate->sleepers, 0);
    if (pthread_mutex_init(&gate->mutex, NULL)) return -1;
    if (pthread_cond_init(&gate->condition, NULL)) {
        pthread_mutex_destroy(&gate->mutex);
        return -1;
    }
    return 0;
}

void lt_gate_destroy(lt_gate *gate) {
    pthread_cond_destroy(&gate->condition);
    pthread_mutex_destroy(&gate->mutex);
}

/* Either the opener sees the sleeper or the sleeper sees the opening: both sides write first, then read, all
 * sequentially consistent. The mutex closes the window between a sleeper's last look and its sleep. */
void lt_gate_open(lt_gate *gate) {
    atomic_fetch_add(&gate->opened, 1);
    if (atomic_load(&gate->sleepers) == 0) return;
    pthread_mutex_lock(&gate->mutex);
    pthread_cond_broadcast(&gate->condition);
    pthread_mutex_unlock(&gate->mutex);
}

static inline void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory"); /* `yield` returns at once on most cores */
#endif
}

void lt_gate_wait(lt_gate *gate, unsigned seen, int32_t spins) {
    for (int32_t i = 0; i < spins; i++) {
        if (lt_gate_seen(gate) != seen) return;
        relax();
    }
    pthread_mutex_lock(&gate->mutex);
    atomic_fetch_add(&gate->sleepers, 1);
    while (atomic_load(&gate->opened) == seen) pthread_cond_wait(&gate->condition, &gate->mutex);
    atomic_fetch_sub(&gate->sleepers, 1);
    pthread_mutex_unlock(&gate->mutex);
}
