#define BITS 4
#define NESTED 32
#define OFFSETS 1
#include "uniform_embed.h"

LT_KERNEL(embed_q4m32, lt_rows, embed_run);
