/* rope(y, x, table; head_dim, interleaved): rotates pairs of each head's first 2n elements by the table's n angles
 * (RoFormer: Su et al. 2021). Pairs are (j, j + n), or (2j, 2j + 1) when interleaved. The rest is copied. */
#include "kernel.h"

static void rotate_halves(float *y, const float *x, const float *cosine, const float *sine, int32_t n) {
    for (int32_t j = 0; j < n; j++) {
        y[j] = x[j] * cosine[j] - x[j + n] * sine[j];
        y[j + n] = x[j + n] * cosine[j] + x[j] * sine[j];
    }
}

static void rotate_neighbours(float *y, const float *x, const float *cosine, const float *sine, int32_t n) {
    for (int32_t j = 0; j < n; j++) {
        y[2 * j] = x[2 * j] * cosine[j] - x[2 * j + 1] * sine[j];
        y[2 * j + 1] = x[2 * j + 1] * cosine[j] + x[2 * j] * sine[j];
    }
}

static void run(const lt_op *op, const lt_step *step, int32_t begin, int32_t end) {
    const int32_t width = op->arg[0].cols, n = op->arg[2].cols / 2, head_dim = op->dim[0];
    for (int32_t row = begin; row < end; row++) {
        float *y = lt_row(op, step, 0, row);
        const float *x = lt_row(op, step, 1, row), *cosine = lt_row(op, step, 2, row);
        for (int32_t head = 0; head < width; head += head_dim) {
            if (op->dim[1]) rotate_neighbours(y + head, x + head, cosine, cosine + n, n);
            else rotate_halves(y + head, x + head, cosine, cosine + n, n);
            memcpy(y + head + 2 * n, x + head + 2 * n, (size_t)(head_dim - 2 * n) * sizeof *y);
        }
    }
}

LT_KERNEL(rope, lt_rows, run);
