/* gelu_erf(y, x): y = x P, P the chance of a normal number below x (Hendrycks & Gimpel 2016), (1 + erf(x / sqrt 2)) / 2.
 * For x < 0 that is e^(-x^2 / 2) times a polynomial in t = 1 / (1 + 0.265 |x|) without a constant term, fitted for the
 * least relative error, 1.1e-8; for others, what that lacks to 1. */
#include "f32x16.h"

static inline f32x16 gelu_erf(f32x16 x) {
    static const float c[] = {0.0309127543f, -0.144662849f, 0.218687976f, -0.117336064f, 0.138610168f,
                              0.0600387403f, 0.102770071f,  0.105237086f, 0.105742123f};
    const f32x16 size = vmin(vabs(x), vset1(1e9f)); /* whose square is finite */
    const f32x16 t = vdiv(vset1(1), vfma(size, vset1(0.265f), vset1(1)));
    f32x16 tail = vset1(c[0]);
    for (int i = 1; i < 9; i++) tail = vfma(tail, t, vset1(c[i]));
    tail = vmul(vmul(tail, t), vexp(vmul(vmul(size, size), vset1(-0.5f))));
    return vfnma(vabs(x), tail, vmax(x, vset1(0)));
}

#define EACH(op, x) gelu_erf(x)
#include "each.h"

LT_KERNEL(gelu_erf, lt_rows, run);
