/* kv_append(k, v; layer, kv_heads, head_dim): writes each row's keys and values at the row's position. */
#include "kv_cache.h"

static void convert(KV_TYPE *to, const float *from, int32_t n) {
    int32_t i = 0;
    for (; i + 16 <= n; i += 16) KV_STORE(to + i, vload(from + i));
    if (i < n) KV_STOREN(to + i, vloadn(from + i, n - i), n - i);
}

/* One position's keys go to one lane of their block's vectors. */
static void scatter(KV_TYPE *keys, int32_t position, const float *from, int32_t n) {
    KV_TYPE *lane = keys + (int64_t)(position / LANES) * LANES * n + position % LANES;
    KV_TYPE converted[16];
    for (int32_t i = 0; i < n; i += 16) {
        const int32_t count = lt_min(16, n - i);
        convert(converted, from + i, count);
        for (int32_t j = 0; j < count; j++) lane[(int64_t)(i + j) * LANES] = converted[j];
    }
}

static void run(const lt_op *op, const lt_step *step, int32_t begin, int32_t end) {
    const int32_t layer = op->dim[0], kv_heads = op->dim[1], n = op->dim[2];
    for (int32_t row = begin; row < end; row++) {
        const float *k = lt_row(op, step, 0, row), *v = lt_row(op, step, 1, row);
        const int32_t position = step->pos + row;
        for (int32_t h = 0; h < kv_heads; h++) {
            kv_head cache = kv_head_at(step, layer, kv_heads, h, n);
            scatter(cache.keys, position, k + h * n, n);
            convert(cache.values + (int64_t)position * n, v + h * n, n);
        }
    }
}
