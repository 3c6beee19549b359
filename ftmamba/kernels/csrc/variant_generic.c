/* Four lanes: SSE2 on x86-64, NEON on ARM, whatever the compiler makes of it elsewhere. */
#define VARIANT generic
#include "variant.h"
