/* short_conv(y, x, weight[, bias]; at, taps, silu): a causal convolution of every column on its own, over a row and the
 * taps - 1 before it, and its bias; its silu, if `silu`. Rows before the step's are in the session's memory: float
 * [taps - 1][columns], from `at` on.
 *
 * A part is a range of columns, in all rows: the same order of sums however tokens come. */
#include "f32x16.h"
#include "kernel.h"

enum { COLUMNS = 256 }; /* of a part */

static int32_t units(const lt_op *op, const lt_step *step) {
    (void)step;
    return lt_ceil_div(op->arg[0].cols, COLUMNS);
}

static inline f32x16 silu(f32x16 x) { return vdiv(x, vadd(vset1(1), vexp(vsub(vset1(0), x)))); }

/* A row of the input from a column on; those before the step's have negative numbers. NULL: it is 0. */
static const float *input(const lt_op *op, const lt_step *step, int32_t row, int32_t column) {
    if (row >= 0) return (const float *)lt_row(op, step, 1, row) + column;
    if (step->pos == 0) return NULL;
    const float *memory = (const float *)step->space[LT_BEFORE] + op->dim[0];
    return memory + (int64_t)(op->dim[1] - 1 + row) * op->arg[0].cols + column;
}

static void add_tap(float *y, const float *x, const float *weight, int32_t n) {
    int32_t i = 0;
    for (; i + 16 <= n; i += 16) vstore(y + i, vfma(vload(x + i), vload(weight + i), vload(y + i)));
    if (i < n) vstoren(y + i, vfma(vloadn(x + i, n - i), vloadn(weight + i, n - i), vloadn(y + i, n - i)), n - i);
}

static void bend(float *y, int32_t n) {
    int32_t i = 0;
    for (; i + 16 <= n; i += 16) vstore(y + i, silu(vload(y + i)));
    if (i < n) vstoren(y + i, silu(vloadn(y + i, n - i)), n - i);
}

static void run(const lt_op *op, const lt_step *step, int32_t begin, int32_t end) {
    const int32_t cols = op->arg[0].cols, before = op->dim[1] - 1;
    const float *bias = lt_row(op, step, 3, 0);
    for (int32_t part = begin; part < end; part++) {
        const int32_t column = part * COLUMNS, n = lt_min(COLUMNS, cols - column);
        for (int32_t row = 0; row < step->n_tokens; row++) {
            float *y = (float *)lt_row(op, step, 0, row) + column;
            if (bias) memcpy(y, bias + column, (size_t)n * sizeof *y);
            else memset(y, 0, (size_t)n * sizeof *y);
            for (int32_t tap = 0; tap <= before; tap++) {
                const float *x = input(op, step, row - before + tap, column);
                if (x) add_tap(y, x, (const float *)lt_row(op, step, 2, tap) + column, n);
            }
            if (op->dim[2]) bend(y, n);
        }
        float *after = (float *)step->space[LT_AFTER] + op->dim[0] + column;
        for (int32_t i = 0; i < before; i++, after += cols) {
            const float *x = input(op, step, step->n_tokens - before + i, column);
            if (x) memcpy(after, x, (size_t)n * sizeof *after);
            else memset(after, 0, (size_t)n * sizeof *after);
        }
    }
}

LT_KERNEL(short_conv, units, run);
