#define BITS 4
#include "uniform_embed.h"

LT_KERNEL(embed_q4, lt_rows, embed_run);
