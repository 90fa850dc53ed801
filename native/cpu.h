/* CPU features as bits: what kernels need and what this machine has. */
#pragma once
#include <stdint.h>

enum {
    LT_AVX2 = 1 << 0, /* with FMA and F16C */
    LT_AVXVNNI = 1 << 1,
    LT_AVX512 = 1 << 2, /* F, BW, DQ, VL */
    LT_VNNI = 1 << 3,   /* AVX512_VNNI */
    LT_VBMI = 1 << 4,
    LT_AMX = 1 << 5, /* AMX-TILE and AMX-INT8, tried out */
    LT_NEON = 1 << 6,
    LT_DOTPROD = 1 << 7,
    LT_I8MM = 1 << 8,
};
