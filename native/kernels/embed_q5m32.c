#define BITS 5
#define NESTED 32
#define OFFSETS 1
#include "uniform_embed.h"

LT_KERNEL(embed_q5m32, lt_rows, embed_run);
