/* A gate: threads wait until it has been opened once more. They spin a little, then sleep. */
#pragma once
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>

typedef struct lt_gate {
    atomic_uint opened; /* how often */
    atomic_int sleepers;
    pthread_mutex_t mutex;
    pthread_cond_t condition;
} lt_gate;

int lt_gate_init(lt_gate *gate);
void lt_gate_destroy(lt_gate *gate);
void lt_gate_open(lt_gate *gate);

/* Read `seen` before whatever leads to the opening that is waited for. */
static inline unsigned lt_gate_seen(lt_gate *gate) { return atomic_load_explicit(&gate->opened, memory_order_acquire); }
void lt_gate_wait(lt_gate *gate, unsigned seen, int32_t spins);
