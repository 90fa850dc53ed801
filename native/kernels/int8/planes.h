/* Planes of bits: what several formats are made of. A chunk of a plane, so many steps of 16 rows by four columns, is
 * width * steps / 8 vectors of fields `width` bits wide, the first step in a byte's lowest bits. */
#pragma once
#include "i8x64.h"

/* The sum of fields' own, where field i was met in its place and is 2^(width * i) too large. */
LT_INLINE i32x16 join_fields(const i32x16 sums[], int fields, int width) {
    i32x16 dot = sums[fields - 1];
#pragma GCC unroll 8
    for (int i = fields - 2; i >= 0; i--) dot = iadd(ishr(dot, width), sums[i]);
    return dot;
}

/* One plane of some blocks, `apart`, over chunks `stride` bytes apart, times a few tokens: a sum for each, block by
 * block. */
LT_INLINE void plane_dot(const uint8_t *data, int64_t stride, int64_t apart, int blocks, few x, int32_t chunks,
                         int64_t ahead, int width, int steps, i32x16 dots[]) {
    const int fields = 8 / width, negative = NEGATIVE_BITS && width == 1, in_place = IN_PLACE && !negative;
    const int sums = !in_place ? 1 : width == 1 ? 4 : fields; /* the upper four bits come down: fewer sums to join */
    const int32_t safe = SAFE_STEPS(127 * ((1 << width) - 1)) / steps;
    i32x16 total[AT_ONCE][8];
#pragma GCC unroll 4
    for (int s = 0; s < blocks * x.n; s++)
#pragma GCC unroll 8
        for (int i = 0; i < sums; i++) total[s][i] = izero();
    for (int32_t c = 0; c < chunks;) {
        const int32_t stop = SAFE_STEPS(127) == INT32_MAX ? chunks : lt_min(c + safe, chunks);
        narrow part[AT_ONCE][8];
#pragma GCC unroll 4
        for (int s = 0; s < blocks * x.n; s++)
#pragma GCC unroll 8
            for (int i = 0; i < sums; i++) part[s][i] = nzero();
        for (; c < stop; c++) {
            i8run run[AT_ONCE];
#pragma GCC unroll 4
            for (int t = 0; t < x.n; t++) run[t] = few_load(few_from(x, c * steps * 4), t, steps);
#pragma GCC unroll 8
            for (int v = 0; v < width * steps / 8; v++) {
#pragma GCC unroll 2
                for (int b = 0; b < blocks; b++) {
                    const uint8_t *at = data + b * apart + c * stride + v * 64;
                    const u8x64 bytes = u8load(at);
                    const u8x64 upper = width == 1 ? u8down4(bytes) : bytes;
                    __builtin_prefetch(at + ahead);
#pragma GCC unroll 8
                    for (int i = 0; i < fields; i++) {
                        const u8x64 own = i < sums || !in_place ? bytes : upper;
                        const u8x64 field = u8field(own, width, in_place ? i % sums : i);
                        narrow(*to)[8] = part + b * x.n;
#pragma GCC unroll 4
                        for (int t = 0; t < x.n; t++)
                            to[t][i % sums] = dot4of(to[t][i % sums], field, run[t], v * fields + i);
                    }
                }
            }
        }
#pragma GCC unroll 4
        for (int s = 0; s < blocks * x.n; s++)
#pragma GCC unroll 8
            for (int i = 0; i < sums; i++) total[s][i] = widen(total[s][i], part[s][i]);
    }
    const int shifted = in_place && LAST_SHIFTED;
#pragma GCC unroll 4
    for (int s = 0; s < blocks * x.n; s++) {
        dots[s] = negative ? isub(izero(), total[s][0]) : join_fields(total[s], sums - shifted, width);
        if (shifted && !negative) dots[s] = iadd(dots[s], total[s][sums - 1]);
    }
}

#if STREAMS == 2
/* Whole rows of two blocks `apart`, chunk by chunk: memory is read faster as two streams. */
LT_INLINE void plane_streams(const uint8_t *data, int64_t apart, few x, int32_t chunks, int width, int steps,
                             i32x16 dots[]) {
    const int fields = 8 / width, bytes = width * steps * 8;
    narrow sums[2 * AT_ONCE][8]; /* of the first block with each token, and of the second */
#pragma GCC unroll 8
    for (int s = 0; s < 2 * x.n; s++)
#pragma GCC unroll 8
        for (int i = 0; i < fields; i++) sums[s][i] = nzero();
    int32_t c = 0;
    for (int near_end = 0; near_end < 2; near_end++) { /* there, what comes next lies behind the second block */
        const int64_t ahead = PREFETCH + (near_end ? apart : 0);
        const int32_t stop = near_end ? chunks : chunks - PREFETCH / bytes;
        for (; c < stop; c++)
#pragma GCC unroll 8
            for (int v = 0; v < width * steps / 8; v++, data += 64, x.codes += fields * 4) {
                const u8x64 first = u8load(data), second = u8load(data + apart);
                __builtin_prefetch(data + ahead);
                __builtin_prefetch(data + apart + ahead);
#pragma GCC unroll 8
                for (int i = 0; i < fields; i++) {
                    const u8x64 one = u8field(first, width, i), other = u8field(second, width, i);
#pragma GCC unroll 4
                    for (int t = 0; t < x.n; t++) {
                        const i8x4 a = i8load4(x.codes + t * x.apart + i * 4);
                        sums[t][i] = dot4(sums[t][i], one, a);
                        sums[x.n + t][i] = dot4(sums[x.n + t][i], other, a);
                    }
                }
            }
    }
#pragma GCC unroll 8
    for (int s = 0; s < 2 * x.n; s++) dots[s] = join_fields(sums[s], fields, width);
}
#endif

/* One step of a plane's chunk, one weight to a byte. */
LT_INLINE u8x64 plane_step(const uint8_t *plane, int width, int step) {
    return u8down(u8load(plane + step * width / 8 * 64), width, step % (8 / width));
}
