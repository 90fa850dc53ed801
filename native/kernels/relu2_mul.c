/* relu2_mul(y, gate, up): y = max(gate, 0)^2 * up (squared ReLU: So et al. 2021). */
#define GATED(op, gate, up) vmul(relu2(gate), up)
#include "f32x16.h"
static inline f32x16 relu2(f32x16 x) {
    f32x16 positive = vmax(x, vset1(0));
    return vmul(positive, positive);
}

#include "gated.h"

LT_KERNEL(relu2_mul, lt_rows, run);
