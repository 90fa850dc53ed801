#include "q8.h"

LT_KERNEL(embed_q8, lt_rows, embed_run);
