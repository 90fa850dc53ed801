#define NESTED 32
#define LOAD_SCALE(p) vload_i8((const int8_t *)(p))
#include "codebook_embed.h"

LT_KERNEL(embed_c4i32, lt_rows, embed_run);
