/* A session's memory, which runtime/cache.py makes.
 *
 * LT_KV: keys and values, per layer: all kv heads' keys, then all kv heads' values. Layers may differ in heads; `at` is
 * how many bytes one position takes in those before. A head's codes come first, then, for types that have them, its
 * scales. `columns` is head_dim rounded up; what is added to it is 0.
 *
 *     codes of keys    [position / 16][columns / STEPS][16 positions][STEPS columns]
 *     codes of values  [position / STEPS][columns / 16][16 columns][STEPS positions]
 *     scales of both   [position / 16][columns / 32][16 positions], half floats
 *
 * A query meets sixteen positions in one vector, a weight sixteen columns; integers come by fours (STEPS), as they are
 * multiplied, and floats one by one. There is room for n_ctx positions, n_ctx rounded up to a multiple of 16. Where two
 * codes share a byte, it is column c's and column c + 16's of the same 32, and there are half as many columns of bytes.
 *
 * LT_WORK: what attention lays aside during a step of at most SPLIT_ROWS rows.
 *
 *     counts  int32 [SPLIT_ROWS * heads]               how many spans are done, of some rows' queries; 0 between steps
 *     pieces  float [rows][heads][spans][columns + 2]  what each span has given: attention.h
 *
 * Include after one kv_<type>.h, which says what a code is:
 *
 *     KV_BYTES   that sixteen codes are loaded from
 *     KV_HALVES  how many times sixteen these bytes hold
 *     KV_GROUP   columns that share a scale: 32, or 0 for floats, which have none
 *     kv_encode  32 floats to codes; returns the scale
 *
 * of floats  kv_load, sixteen codes; of integers  kv_half, sixty-four of one half, as int8/i8x64.h multiplies them;
 * KV_ZERO, by which these are too large; KV_MOST, the largest of them.
 */
#pragma once
#include "f32x16.h"
#include "kernel.h"

enum {
    LANES = 16,     /* positions in a vector of keys */
    STEPS = KV_GROUP ? 4 : 1,
    KV_SPAN = 512,  /* positions; a query's softmax is made span by span, whoever makes them */
    SPLIT_ROWS = 8, /* a step of more rows has enough parts without cutting the context into spans */
};

typedef struct {
    uint8_t *codes;
    uint16_t *scales;
} kv_codes;

typedef struct {
    kv_codes keys, values;
} kv_head;

static inline int32_t kv_columns(int32_t head_dim) {
    const int32_t some = KV_GROUP ? KV_GROUP : 16;
    return lt_ceil_div(head_dim, some) * some;
}
static inline int32_t kv_groups(int32_t columns) { return KV_GROUP ? columns / KV_GROUP : 0; }
static inline int64_t kv_row_bytes(int32_t columns) { return (int64_t)columns / 16 / KV_HALVES * KV_BYTES; }

static inline kv_head kv_head_at(const lt_step *step, int32_t at, int32_t kv_heads, int32_t head, int32_t columns) {
    const int64_t positions = (int64_t)lt_ceil_div(step->n_ctx, LANES) * LANES;
    const int64_t codes = positions * kv_row_bytes(columns), size = codes + positions * kv_groups(columns) * 2;
    uint8_t *keys = (uint8_t *)step->space[LT_KV] + positions * at + head * size;
    uint8_t *values = keys + kv_heads * size;
    return (kv_head){{keys, (uint16_t *)(keys + codes)}, {values, (uint16_t *)(values + codes)}};
}

/* The scales of sixteen positions, from a multiple of 16 on. */
static inline const uint16_t *kv_scales(const kv_codes *of, int64_t position, int32_t column, int32_t columns) {
    return of->scales + (position / LANES * kv_groups(columns) + column / (KV_GROUP ? KV_GROUP : 1)) * LANES;
}
