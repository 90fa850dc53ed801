/* kv_append(k, v; at, kv_heads, head_dim): writes each row's keys and values at the row's position. */
#include "kv_cache.h"

enum { CODE = KV_BYTES / 16, MOST = 32 / KV_HALVES }; /* bytes of a code, or of those that share one; in 32 columns */

static void append_head(const kv_head *cache, int32_t position, const float *k, const float *v, int32_t n) {
    const int32_t columns = kv_columns(n), codes = columns / KV_HALVES, lane = position % LANES;
    uint8_t *keys = cache->keys.codes + (int64_t)(position - lane) * kv_row_bytes(columns);
    uint8_t *values = cache->values.codes + (int64_t)(position - position % STEPS) * kv_row_bytes(columns);
    for (int32_t c = 0; c < n; c += 32) {
        const int32_t first = c / KV_HALVES, some = lt_min(MOST, codes - first);
        _Alignas(64) uint8_t key_codes[MOST * CODE], value_codes[MOST * CODE];
        float x[32] = {0};
        memcpy(x, k + c, (size_t)lt_min(32, n - c) * sizeof *x);
        const uint16_t key_scale = kv_encode(key_codes, x);
        memcpy(x, v + c, (size_t)lt_min(32, n - c) * sizeof *x);
        const uint16_t value_scale = kv_encode(value_codes, x);

        for (int32_t i = 0; i < some; i++) {
            const int32_t code = first + i, key = (code / STEPS * LANES + lane) * STEPS + code % STEPS;
            memcpy(keys + (int64_t)key * CODE, key_codes + i * CODE, CODE);
            memcpy(values + (int64_t)(code * STEPS + position % STEPS) * CODE, value_codes + i * CODE, CODE);
        }
        if (KV_GROUP) {
            const int64_t at = ((int64_t)(position / LANES) * kv_groups(columns) + c / 32) * LANES + lane;
            cache->keys.scales[at] = key_scale;
            cache->values.scales[at] = value_scale;
        }
    }
}

static void run(const lt_op *op, const lt_step *step, int32_t begin, int32_t end) {
    const int32_t at = op->dim[0], kv_heads = op->dim[1], n = op->dim[2];
    for (int32_t row = begin; row < end; row++) {
        const float *k = lt_row(op, step, 0, row), *v = lt_row(op, step, 1, row);
        for (int32_t h = 0; h < kv_heads; h++) {
            const kv_head cache = kv_head_at(step, at, kv_heads, h, kv_columns(n));
            append_head(&cache, step->pos + row, k + h * n, v + h * n, n);
        }
    }
}
