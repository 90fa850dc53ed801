#include "codebook_embed.h"

LT_KERNEL(embed_c4, lt_rows, embed_run);
