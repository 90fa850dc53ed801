/* kv_append(k, v; layer, kv_heads, head_dim): writes each row's keys and values at the row's position. */
#include "kv_cache.h"

static void convert(KV_TYPE *to, const float *from, int32_t n) {
    int32_t i = 0;
    for (; i + 16 <= n; i += 16) KV_STORE(to + i, vload(from + i));
    if (i < n) KV_STOREN(to + i, vloadn(from + i, n - i), n - i);
}

static void run(const lt_op *op, const lt_step *step, int32_t begin, int32_t end) {
    const int32_t layer = op->dim[0], kv_heads = op->dim[1], head_dim = op->dim[2];
    for (int32_t row = begin; row < end; row++) {
        const float *k = lt_row(op, step, 0, row), *v = lt_row(op, step, 1, row);
        const int64_t at = (int64_t)(step->pos + row) * head_dim;
        for (int32_t h = 0; h < kv_heads; h++) {
            kv_head cache = kv_head_at(step, layer, kv_heads, h, head_dim);
            convert(cache.keys + at, k + h * head_dim, head_dim);
            convert(cache.values + at, v + h * head_dim, head_dim);
        }
    }
}
