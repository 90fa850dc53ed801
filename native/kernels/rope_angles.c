/* rope_angles(table, ids, frequency; magnitude): for each row's position p the rotary angles p * frequency, as a row of
 * cosines followed by a row of sines, times `magnitude`. Computed once a step, used by every layer. */
#include <math.h>

#include "kernel.h"

static void run(const lt_op *op, const lt_step *step, int32_t begin, int32_t end) {
    const int32_t n = op->arg[2].cols;
    const float *frequency = lt_row(op, step, 2, 0);
    for (int32_t row = begin; row < end; row++) {
        float *cosine = lt_row(op, step, 0, row), *sine = cosine + n;
        for (int32_t i = 0; i < n; i++) {
            const float angle = (float)(step->pos + row) * frequency[i]; /* rounded to float, as the models were trained */
            cosine[i] = (float)cos((double)angle) * op->f[0];
            sine[i] = (float)sin((double)angle) * op->f[0];
        }
    }
}

LT_KERNEL(rope_angles, lt_rows, run);
