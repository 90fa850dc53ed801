/* What the linear_t5 kernels with 16-byte vectors share: a quarter of a vector is 4 rows of a block. */
#pragma once
#include <arm_neon.h>

#include "t5.h"

enum { QUARTER = 16, QUARTER_ROWS = 4, QUARTERS = T5_VECTOR / QUARTER };

static inline int8x16_t broadcast4(const int8_t *p) {
    int32_t word;
    memcpy(&word, p, sizeof word);
    return vreinterpretq_s8_s32(vdupq_n_s32(word));
}

static inline int8x16_t load_fractions(const uint8_t *p) {
    return vreinterpretq_s8_u8(veorq_u8(vld1q_u8(p), vdupq_n_u8(0x80)));
}

/* 3, hidden from gcc: it would make a shift and an addition of every multiplication by a constant 3. */
static inline int8x16_t hidden3(void) {
    int8x16_t three = vdupq_n_s8(3);
    __asm__("" : "+w"(three));
    return three;
}

/* The first digit of the fractions f. The comparisons give -1 for true. */
static inline int8x16_t first_digit(int8x16_t f) {
    const uint8x16_t above = vcgtq_s8(f, vdupq_n_s8(42)), below = vcltq_s8(f, vdupq_n_s8(-42));
    return vreinterpretq_s8_u8(vsubq_u8(below, above));
}
