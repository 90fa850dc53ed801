#define BITS 8
#include "uniform_embed.h"

LT_KERNEL(embed_u8, lt_rows, embed_run);
