#define NESTED 16
#define LOAD_SCALE vload_f8
#include "codebook_embed.h"

LT_KERNEL(embed_c4f16, lt_rows, embed_run);
