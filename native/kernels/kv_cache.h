/* A session's memory, which runtime/cache.py makes.
 *
 * LT_KV: keys and values, per layer: all kv heads' keys, then all kv heads' values.
 *
 *     keys    [position / 16][head_dim][16 positions]   a query meets sixteen positions in one vector, with no sum across
 *     values  [position][head_dim]
 *
 * Both have room for n_ctx positions, n_ctx rounded up to a multiple of 16.
 *
 * LT_WORK: what attention lays aside during a step of at most SPLIT_ROWS rows.
 *
 *     counts  int32 [SPLIT_ROWS * kv_heads]             how many spans are done, of some rows' queries; 0 between steps
 *     pieces  float [rows][heads][spans][head_dim + 2]  what each span has given: attention.h
 *
 * Include after defining KV_TYPE, KV_LOAD, KV_LOADN, KV_STORE, KV_STOREN. */
#pragma once
#include "f32x16.h"
#include "kernel.h"

enum {
    LANES = 16,     /* positions in a vector of keys */
    SPAN = 256,     /* positions; a query's softmax is made span by span, whoever makes them */
    SPLIT_ROWS = 8, /* a step of more rows has enough parts without cutting the context into spans */
};

typedef struct {
    KV_TYPE *keys, *values;
} kv_head;

static inline kv_head kv_head_at(const lt_step *step, int32_t layer, int32_t kv_heads, int32_t head, int32_t head_dim) {
    const int64_t size = (int64_t)lt_ceil_div(step->n_ctx, LANES) * LANES * head_dim; /* of one head */
    KV_TYPE *keys = (KV_TYPE *)step->space[LT_KV] + (2 * (int64_t)layer * kv_heads + head) * size;
    return (kv_head){keys, keys + kv_heads * size};
}
