/* Ops of the gated feed-forwards, number by number. Include after defining GATED(op, gate, up), of sixteen. */
#include "f32x16.h"
#include "kernel.h"

static void run(const lt_op *op, const lt_step *step, int32_t begin, int32_t end) {
    const int32_t n = op->arg[0].cols;
    for (int32_t row = begin; row < end; row++) {
        float *y = lt_row(op, step, 0, row);
        const float *gate = lt_row(op, step, 1, row), *up = lt_row(op, step, 2, row);
        int32_t i = 0;
        for (; i + 16 <= n; i += 16) vstore(y + i, GATED(op, vload(gate + i), vload(up + i)));
        if (i < n) vstoren(y + i, GATED(op, vloadn(gate + i, n - i), vloadn(up + i, n - i)), n - i);
    }
}
