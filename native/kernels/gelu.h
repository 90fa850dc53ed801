/* gelu by its tanh (Hendrycks & Gimpel 2016): x (1 + tanh u) / 2, which is x / (1 + e^-2u), u = sqrt(2 / pi) (x + 0.044715
 * x^3). */
#pragma once
#include "f32x16.h"

static inline f32x16 gelu_tanh(f32x16 x) {
    const f32x16 inner = vfma(vmul(vmul(x, x), x), vset1(0.044715f), x);
    return vdiv(x, vadd(vset1(1), vexp(vmul(inner, vset1(-1.5957691216f)))));
}
