#define BITS 1
#include "uniform_embed.h"

LT_KERNEL(embed_b1, lt_rows, embed_run);
