/* hadamard(y, x; block): x's columns in runs of `block`, a power of two, each times the Walsh-Hadamard matrix of that
 * size in Sylvester's order, divided by its root: a rotation, and its own inverse. */
#include <math.h>

#include "f32x16.h"
#include "kernel.h"

/* Sums and differences of elements 1, 2, 4, ... apart. */
static void transform(float *y, int32_t n) {
    for (int32_t step = 1; step < n; step *= 2)
        for (int32_t at = 0; at < n; at += 2 * step) {
            float *a = y + at, *b = a + step;
            int32_t i = 0;
            for (; i + 16 <= step; i += 16) {
                const f32x16 u = vload(a + i), v = vload(b + i);
                vstore(a + i, vadd(u, v));
                vstore(b + i, vsub(u, v));
            }
            for (; i < step; i++) {
                const float u = a[i], v = b[i];
                a[i] = u + v;
                b[i] = u - v;
            }
        }
}

static void run(const lt_op *op, const lt_step *step, int32_t begin, int32_t end) {
    const int32_t cols = op->arg[0].cols, block = op->dim[0];
    const float scale = 1.0f / sqrtf((float)block);
    for (int32_t row = begin; row < end; row++) {
        float *y = lt_row(op, step, 0, row);
        memcpy(y, lt_row(op, step, 1, row), (size_t)cols * sizeof *y);
        for (int32_t at = 0; at < cols; at += block) transform(y + at, block);
        for (int32_t i = 0; i < cols; i++) y[i] *= scale;
    }
}

LT_KERNEL(hadamard, lt_rows, run);
