/* How a session's keys and values lie in its memory: [layer][key, value][kv_head][position][head_dim].
 * Include after defining KV_TYPE, KV_LOAD, KV_LOADN, KV_STORE, KV_STOREN. */
#pragma once
#include "f32x16.h"
#include "kernel.h"

typedef struct {
    KV_TYPE *keys, *values; /* [position][head_dim] */
} kv_head;

static inline kv_head kv_head_at(const lt_step *step, int32_t layer, int32_t kv_heads, int32_t head, int32_t head_dim) {
    const int64_t size = (int64_t)step->n_ctx * head_dim; /* of one head */
    KV_TYPE *keys = (KV_TYPE *)step->space[LT_KV] + (2 * (int64_t)layer * kv_heads + head) * size;
    return (kv_head){keys, keys + kv_heads * size};
}
