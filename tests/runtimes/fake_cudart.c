/* A CUDA runtime for tests: the device's memory is the host's, work is done when it is given, the clock is real.
 * Any function can be told to fail, and memory to run out. */
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef int status;
static const char *failing;
static status failure;
static size_t limit = (size_t)-1;
static int capturing, held;
static void (*launched)(void);

static status result(const char *name) { return failing && !strcmp(failing, name) ? failure : 0; }
#define CHECKED do { status s = result(__func__); if (s) return s; } while (0)

/* What tests say and ask. */
void fake_fail(const char *name, status with) { free((void *)failing); failing = name ? strdup(name) : 0; failure = with; }
void fake_limit(size_t bytes) { limit = bytes; }
void fake_on_launch(void (*function)(void)) { launched = function; }
int fake_is_capturing(void) { return capturing; }
int fake_held(void) { return held; }

static status new_handle(void **out) { *out = malloc(sizeof(struct timespec)); held++; return 0; }
static status give_back(void *handle) { if (handle) { free(handle); held--; } return 0; }
static status allocate(void **out, size_t size) {
    if (size > limit) return 2;
    *out = malloc(size); held++;
    memset(*out, 0xff, size); /* not a number, if it is read before it is written */
    return 0;
}

status cudaGetDeviceCount(int *out) { CHECKED; *out = 1; return 0; }
status cudaSetDevice(int index) { CHECKED; return index ? 101 : 0; }
status cudaGetDeviceProperties(void *out, int index) { CHECKED; (void)index; strcpy(out, "Fake GPU"); return 0; }
status cudaDeviceGetAttribute(int *out, int attribute, int index) {
    CHECKED; (void)index; *out = attribute == 75 ? 9 : attribute == 76 ? 0 : -1; return 0;
}
status cudaRuntimeGetVersion(int *out) { CHECKED; *out = 13020; return 0; }
status cudaDriverGetVersion(int *out) { CHECKED; *out = 13010; return 0; }
status cudaMalloc(void **out, size_t size) { CHECKED; return allocate(out, size); }
status cudaFree(void *p) { CHECKED; return give_back(p); }
status cudaMallocHost(void **out, size_t size) { CHECKED; return allocate(out, size); }
status cudaFreeHost(void *p) { CHECKED; return give_back(p); }
status cudaMemcpyAsync(void *to, const void *from, size_t size, int direction, void *stream) {
    CHECKED; (void)direction; (void)stream; memcpy(to, from, size); return 0;
}
status cudaStreamCreateWithFlags(void **out, unsigned flags) { CHECKED; return flags == 1 ? new_handle(out) : 1; }
status cudaStreamSynchronize(void *stream) { CHECKED; (void)stream; return 0; }
status cudaStreamDestroy(void *stream) { CHECKED; return give_back(stream); }
status cudaEventCreate(void **out) { CHECKED; return new_handle(out); }
status cudaEventRecord(void *event, void *stream) {
    CHECKED; (void)stream; clock_gettime(CLOCK_MONOTONIC, event); return 0;
}
status cudaEventSynchronize(void *event) { CHECKED; (void)event; return 0; }
status cudaEventElapsedTime(float *out, void *start, void *end) {
    CHECKED;
    struct timespec *a = start, *b = end;
    *out = (float)((b->tv_sec - a->tv_sec) * 1e3 + (b->tv_nsec - a->tv_nsec) / 1e6);
    return 0;
}
status cudaEventDestroy(void *event) { CHECKED; return give_back(event); }
status cudaStreamBeginCapture(void *stream, int mode) { CHECKED; (void)stream; capturing = 1; return mode == 1 ? 0 : 1; }
status cudaStreamEndCapture(void *stream, void **out) { (void)stream; capturing = 0; CHECKED; return new_handle(out); }
status cudaGraphInstantiateWithFlags(void **out, void *graph, unsigned long long flags) {
    CHECKED; (void)graph; return flags ? 1 : new_handle(out);
}
status cudaGraphLaunch(void *graph, void *stream) { CHECKED; (void)graph; (void)stream; if (launched) launched(); return 0; }
status cudaGraphExecDestroy(void *graph) { CHECKED; return give_back(graph); }
status cudaGraphDestroy(void *graph) { CHECKED; return give_back(graph); }
status cudaGetLastError(void) { return 0; }
const char *cudaGetErrorString(status code) { return code == 2 ? "out of memory" : "the fake fails"; }
