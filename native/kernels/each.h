/* Ops that make one row of floats of another, number by number. Include after defining EACH(op, x), of sixteen. */
#include "f32x16.h"
#include "kernel.h"

static void run(const lt_op *op, const lt_step *step, int32_t begin, int32_t end) {
    const int32_t n = op->arg[0].cols;
    for (int32_t row = begin; row < end; row++) {
        float *y = lt_row(op, step, 0, row);
        const float *x = lt_row(op, step, 1, row);
        int32_t i = 0;
        for (; i + 16 <= n; i += 16) vstore(y + i, EACH(op, vload(x + i)));
        if (i < n) vstoren(y + i, EACH(op, vloadn(x + i, n - i)), n - i);
    }
}
