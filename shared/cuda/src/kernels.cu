// What a transformer does between its matrix products, one pass over memory each, and attention that keeps its scores in
// registers. Arithmetic is f32; values are read and written in bf16 or f32.

#include <cuda_bf16.h>
#include <stdint.h>

using bf16 = __nv_bfloat16;

namespace {

constexpr float LOG2_E = 1.4426950408889634f;
constexpr int WARP = 32;

template <typename T> __device__ float wide(T value);
template <> __device__ float wide(float value) { return value; }
template <> __device__ float wide(bf16 value) { return __bfloat162float(value); }

template <typename T> __device__ T stored(float value);
template <> __device__ float stored(float value) { return value; }
template <> __device__ bf16 stored(float value) { return __float2bfloat16_rn(value); }

// Values that one thread reads and writes at a time.
constexpr int RUN = 8;

template <typename T> struct alignas(RUN * sizeof(T) < 16 ? RUN * sizeof(T) : 16) Run { T values[RUN]; };

__device__ float activated(float value, int activation) {
    switch (activation) {
    case 1: return value / (1.0f + __expf(-1.702f * value));
    case 2: return value / (1.0f + __expf(-value));
    default: return value;
    }
}

// activation(y + bias) + residual, RUN values a thread; `width` is a multiple of RUN.
template <typename T, typename Out, bool RESIDUAL>
__device__ void finish(const T *y, const float *bias, const float *residual, Out *out, uint64_t count, uint32_t width,
                       int activation) {
    const uint64_t start = ((uint64_t)blockIdx.x * blockDim.x + threadIdx.x) * RUN;
    if (start >= count) return;
    const Run<T> in = *reinterpret_cast<const Run<T> *>(y + start);
    Run<float> added{}, before{};
    if (bias) added = *reinterpret_cast<const Run<float> *>(bias + start % width);
    if (RESIDUAL) before = *reinterpret_cast<const Run<float> *>(residual + start);
    Run<Out> result;
#pragma unroll
    for (int i = 0; i < RUN; i++) {
        const float value = activated(wide(in.values[i]) + added.values[i], activation);
        result.values[i] = stored<Out>(value + before.values[i]);
    }
    *reinterpret_cast<Run<Out> *>(out + start) = result;
}

// silu(gate) * up
template <typename T> __device__ void gate(const T *gate, const T *up, T *out, uint64_t count) {
    const uint64_t start = ((uint64_t)blockIdx.x * blockDim.x + threadIdx.x) * RUN;
    if (start >= count) return;
    const Run<T> g = *reinterpret_cast<const Run<T> *>(gate + start);
    const Run<T> u = *reinterpret_cast<const Run<T> *>(up + start);
    Run<T> result;
#pragma unroll
    for (int i = 0; i < RUN; i++) result.values[i] = stored<T>(activated(wide(g.values[i]), 2) * wide(u.values[i]));
    *reinterpret_cast<Run<T> *>(out + start) = result;
}

// The sum over a block of at most 1,024 threads, for all of them.
__device__ float block_sum(float value) {
    __shared__ float sums[WARP];
#pragma unroll
    for (int step = WARP / 2; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
    // The last sum has been read by everyone.
    __syncthreads();
    if (threadIdx.x % WARP == 0) sums[threadIdx.x / WARP] = value;
    __syncthreads();
    const int warps = blockDim.x / WARP;
    value = threadIdx.x % WARP < warps ? sums[threadIdx.x % WARP] : 0.0f;
#pragma unroll
    for (int step = WARP / 2; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
    return value;
}

// A row a block: (x - mean) / sqrt(variance + eps) * weight + bias where `centred`, else x / sqrt(mean(x^2) + eps) * weight.
// `width` is a multiple of 4.
template <typename Out>
__device__ void normalise(const float *x, const float *weight, const float *bias, Out *out, uint32_t width, float eps,
                          int centred) {
    x += (uint64_t)blockIdx.x * width;
    out += (uint64_t)blockIdx.x * width;
    const auto at = [](const float *values, uint32_t place) { return *reinterpret_cast<const float4 *>(values + place); };
    float mean = 0.0f;
    if (centred) {
        for (uint32_t i = threadIdx.x * 4; i < width; i += blockDim.x * 4) {
            const float4 v = at(x, i);
            mean += (v.x + v.y) + (v.z + v.w);
        }
        mean = block_sum(mean) / width;
    }
    float squares = 0.0f;
    for (uint32_t i = threadIdx.x * 4; i < width; i += blockDim.x * 4) {
        const float4 v = at(x, i);
        const float a = v.x - mean, b = v.y - mean, c = v.z - mean, d = v.w - mean;
        squares += (a * a + b * b) + (c * c + d * d);
    }
    const float scale = rsqrtf(block_sum(squares) / width + eps);
    for (uint32_t i = threadIdx.x * 4; i < width; i += blockDim.x * 4) {
        const float4 v = at(x, i), w = at(weight, i);
        const float4 b = bias ? at(bias, i) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        out[i] = stored<Out>((v.x - mean) * scale * w.x + b.x);
        out[i + 1] = stored<Out>((v.y - mean) * scale * w.y + b.y);
        out[i + 2] = stored<Out>((v.z - mean) * scale * w.z + b.z);
        out[i + 3] = stored<Out>((v.w - mean) * scale * w.w + b.w);
    }
}

// The two halves a, b of every head become a cos - b sin, b cos + a sin; a thread a pair. `x` has any strides but the last.
template <typename T>
__device__ void rotate(const T *x, const float *cos, const float *sin, T *out, uint64_t count, uint32_t heads, uint32_t half,
                       uint64_t token_stride, uint64_t head_stride) {
    const uint64_t place = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (place >= count) return;
    const uint64_t pair = place % half, head = place / half % heads, token = place / half / heads;
    const T *from = x + token * token_stride + head * head_stride + pair;
    T *to = out + (token * heads + head) * 2 * half + pair;
    const float c = cos[token * half + pair], s = sin[token * half + pair];
    const float a = wide(from[0]), b = wide(from[half]);
    to[0] = stored<T>(a * c - b * s);
    to[half] = stored<T>(b * c + a * s);
}

// Queries that attend together, and the keys and values that they see: those of a beginning, then the others. Rows are
// counted from each pointer.
struct Sequence {
    const bf16 *query;
    const bf16 *first_key, *first_value;
    const bf16 *key, *value;
    bf16 *out;
    int queries, first, keys, unused;
};

// As many as fit a kernel's arguments.
constexpr int SEQUENCES = 48;
struct Sequences { Sequence of[SEQUENCES]; };

// Distances between rows and between heads, in values.
struct Strides { int64_t query, query_head, key, key_head, value, value_head, out; };

__device__ uint32_t shared_address(const void *place) { return (uint32_t)__cvta_generic_to_shared(place); }

// Four matrices of 8 x 8, a row of 16 bytes from each thread.
__device__ void load_matrices(uint32_t (&to)[4], const bf16 *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row)));
}

__device__ void load_transposed(uint32_t (&to)[4], const bf16 *row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(shared_address(row)));
}

// sum += a b, of 16 x 16 by 16 x 8.
__device__ void multiply_add(float (&sum)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
                 "{%0, %1, %2, %3};"
                 : "+f"(sum[0]), "+f"(sum[1]), "+f"(sum[2]), "+f"(sum[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// 16 bytes to shared memory, behind the thread's back; zeros where there is nothing.
__device__ void copy_later(bf16 *to, const bf16 *from, bool there) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(to)), "l"(from), "r"(there ? 16 : 0));
}
__device__ void end_group() { asm volatile("cp.async.commit_group;"); }
template <int N> __device__ void wait_for_all_groups_but() { asm volatile("cp.async.wait_group %0;" ::"n"(N)); }

__device__ uint32_t packed(float low, float high) {
    const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<const uint32_t *>(&pair);
}

constexpr int ROWS = 64;       // of queries in a block
constexpr int KEYS = 64;       // in shared memory at a time
constexpr int THREADS = 128;   // 16 rows a warp
constexpr int PADDING = 8;     // values behind each row, against bank conflicts

// Rows of keys or values of one head, from the `from`-th key of the sequence on, to shared memory.
template <int D>
__device__ void fetch(bf16 *to, const bf16 *beginning, const bf16 *rest, int first, int end, int from, int64_t stride) {
    constexpr int CHUNKS = D / 8;
    for (int i = threadIdx.x; i < KEYS * CHUNKS; i += THREADS) {
        const int row = i / CHUNKS, column = i % CHUNKS * 8, key = from + row;
        const bool there = key < end;
        const bf16 *source = key < first ? beginning + key * stride : rest + (key - first) * stride;
        copy_later(to + row * (D + PADDING) + column, there ? source + column : rest, there);
    }
}

// softmax(scale q k^T) v over a sequence's keys, in the order of FlashAttention-2 (Dao, 2023): scores live in registers, the
// row's largest score and sum go along. A block takes 64 rows, which are the queries of all heads that share a head of keys.
template <int D, bool CAUSAL>
__device__ void attend(const Sequences &sequences, const Strides &strides, int group, float scale) {
    constexpr int LINE = D + PADDING;
    __shared__ alignas(16) bf16 keys[KEYS * LINE];
    __shared__ alignas(16) bf16 values[KEYS * LINE];
    const Sequence &sequence = sequences.of[blockIdx.z];
    const int rows = sequence.queries * group, first_row = blockIdx.x * ROWS;
    if (first_row >= rows) return;
    const int kv_head = blockIdx.y, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const int all = sequence.first + sequence.keys;
    const auto seen = [&](int row) { return CAUSAL ? all - sequence.queries + min(row, rows - 1) / group + 1 : all; };
    const int end = seen(first_row + ROWS - 1);
    const bf16 *first_key = sequence.first_key + kv_head * strides.key_head;
    const bf16 *first_value = sequence.first_value + kv_head * strides.value_head;
    const bf16 *key = sequence.key + kv_head * strides.key_head;
    const bf16 *value = sequence.value + kv_head * strides.value_head;

    // Queries pass through the place of the keys into registers.
    for (int i = threadIdx.x; i < ROWS * (D / 8); i += THREADS) {
        const int line = i / (D / 8), column = i % (D / 8) * 8, row = first_row + line;
        const int query = row / group, head = kv_head * group + row % group;
        const bool there = row < rows;
        const bf16 *source = sequence.query + query * strides.query + head * strides.query_head + column;
        copy_later(keys + line * LINE + column, there ? source : sequence.query, there);
    }
    end_group();
    wait_for_all_groups_but<0>();
    __syncthreads();
    uint32_t q[D / 16][4];
#pragma unroll
    for (int k = 0; k < D / 16; k++) load_matrices(q[k], keys + (warp * 16 + lane % 16) * LINE + k * 16 + lane / 16 * 8);
    __syncthreads();
    fetch<D>(keys, first_key, key, sequence.first, end, 0, strides.key);
    end_group();

    // Two rows a thread: `lane / 4` of the warp's 16, and the one 8 below.
    const int my_row = first_row + warp * 16 + lane / 4;
    const int visible[2] = {seen(my_row), seen(my_row + 8)};
    float mixed[D / 8][4] = {}, largest[2] = {-INFINITY, -INFINITY}, sum[2] = {};
    const float exponent = scale * LOG2_E;

    for (int from = 0; from < end; from += KEYS) {
        wait_for_all_groups_but<0>();
        __syncthreads();
        fetch<D>(values, first_value, value, sequence.first, end, from, strides.value);
        end_group();

        float scores[KEYS / 8][4] = {};
#pragma unroll
        for (int k = 0; k < D / 16; k++) {
#pragma unroll
            for (int n = 0; n < KEYS / 16; n++) {
                uint32_t b[4];
                const int line = n * 16 + lane % 8 + lane / 16 * 8;
                load_matrices(b, keys + line * LINE + k * 16 + lane / 8 % 2 * 8);
                multiply_add(scores[2 * n], q[k], b[0], b[1]);
                multiply_add(scores[2 * n + 1], q[k], b[2], b[3]);
            }
        }
        // Everyone is done with these keys: the next may come while softmax and values are at work.
        __syncthreads();
        if (from + KEYS < end) fetch<D>(keys, first_key, key, sequence.first, end, from + KEYS, strides.key);
        end_group();

#pragma unroll
        for (int half = 0; half < 2; half++) {
            float top = largest[half];
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    float &score = scores[n][2 * half + i];
                    if (from + n * 8 + lane % 4 * 2 + i >= visible[half]) score = -INFINITY;
                    top = fmaxf(top, score);
                }
            }
            top = fmaxf(top, __shfl_xor_sync(~0u, top, 1));
            top = fmaxf(top, __shfl_xor_sync(~0u, top, 2));
            // Every row sees the first key, so that `top` is finite.
            const float fade = exp2f((largest[half] - top) * exponent);
            largest[half] = top;
            float added = 0.0f;
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++) {
#pragma unroll
                for (int i = 0; i < 2; i++) {
                    float &score = scores[n][2 * half + i];
                    score = exp2f((score - top) * exponent);
                    added += score;
                }
            }
            sum[half] = sum[half] * fade + added;
#pragma unroll
            for (int d = 0; d < D / 8; d++) {
                mixed[d][2 * half] *= fade;
                mixed[d][2 * half + 1] *= fade;
            }
        }

        wait_for_all_groups_but<1>();
        __syncthreads();
#pragma unroll
        for (int k = 0; k < KEYS / 16; k++) {
            const uint32_t weights[4] = {packed(scores[2 * k][0], scores[2 * k][1]), packed(scores[2 * k][2], scores[2 * k][3]),
                                         packed(scores[2 * k + 1][0], scores[2 * k + 1][1]),
                                         packed(scores[2 * k + 1][2], scores[2 * k + 1][3])};
#pragma unroll
            for (int d = 0; d < D / 16; d++) {
                uint32_t b[4];
                load_transposed(b, values + (k * 16 + lane % 16) * LINE + d * 16 + lane / 16 * 8);
                multiply_add(mixed[2 * d], weights, b[0], b[1]);
                multiply_add(mixed[2 * d + 1], weights, b[2], b[3]);
            }
        }
    }
    wait_for_all_groups_but<0>();

#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int row = my_row + 8 * half;
        float total = sum[half];
        total += __shfl_xor_sync(~0u, total, 1);
        total += __shfl_xor_sync(~0u, total, 2);
        if (row >= rows) continue;
        const int query = row / group, head = kv_head * group + row % group;
        bf16 *to = sequence.out + query * strides.out + (int64_t)head * D + lane % 4 * 2;
#pragma unroll
        for (int d = 0; d < D / 8; d++) {
            *reinterpret_cast<uint32_t *>(to + d * 8) = packed(mixed[d][2 * half] / total, mixed[d][2 * half + 1] / total);
        }
    }
}

// Rows that are written elsewhere: `rows` of them from `from` and as many from `also_from`.
struct Copy {
    const uint4 *from, *also_from;
    uint4 *to, *also_to;
    int64_t count; // of 16 bytes
};
constexpr int COPIES = 64;
struct Copies { Copy of[COPIES]; };

} // namespace

extern "C" {

__global__ void finish_f32(const float *y, const float *bias, const float *residual, float *out, uint64_t count,
                           uint32_t width, int activation) {
    finish<float, float, false>(y, bias, residual, out, count, width, activation);
}
__global__ void finish_bf16(const bf16 *y, const float *bias, const float *residual, bf16 *out, uint64_t count,
                            uint32_t width, int activation) {
    finish<bf16, bf16, false>(y, bias, residual, out, count, width, activation);
}
__global__ void finish_onto_f32(const float *y, const float *bias, const float *residual, float *out, uint64_t count,
                                uint32_t width, int activation) {
    finish<float, float, true>(y, bias, residual, out, count, width, activation);
}
__global__ void finish_onto_bf16(const bf16 *y, const float *bias, const float *residual, float *out, uint64_t count,
                                 uint32_t width, int activation) {
    finish<bf16, float, true>(y, bias, residual, out, count, width, activation);
}

__global__ void gate_f32(const float *g, const float *up, float *out, uint64_t count) { gate(g, up, out, count); }
__global__ void gate_bf16(const bf16 *g, const bf16 *up, bf16 *out, uint64_t count) { gate(g, up, out, count); }

__global__ void normalise_f32(const float *x, const float *weight, const float *bias, float *out, uint32_t width, float eps,
                              int centred) {
    normalise(x, weight, bias, out, width, eps, centred);
}
__global__ void normalise_bf16(const float *x, const float *weight, const float *bias, bf16 *out, uint32_t width, float eps,
                               int centred) {
    normalise(x, weight, bias, out, width, eps, centred);
}

__global__ void rotate_f32(const float *x, const float *cos, const float *sin, float *out, uint64_t count, uint32_t heads,
                           uint32_t half, uint64_t token_stride, uint64_t head_stride) {
    rotate(x, cos, sin, out, count, heads, half, token_stride, head_stride);
}
__global__ void rotate_bf16(const bf16 *x, const float *cos, const float *sin, bf16 *out, uint64_t count, uint32_t heads,
                            uint32_t half, uint64_t token_stride, uint64_t head_stride) {
    rotate(x, cos, sin, out, count, heads, half, token_stride, head_stride);
}

#define ATTEND(D)                                                                                                          \
    __global__ void __launch_bounds__(THREADS) attend_full_##D(const __grid_constant__ Sequences sequences,               \
                                                               const __grid_constant__ Strides strides, int group,        \
                                                               float scale) {                                             \
        attend<D, false>(sequences, strides, group, scale);                                                                \
    }                                                                                                                      \
    __global__ void __launch_bounds__(THREADS) attend_causal_##D(const __grid_constant__ Sequences sequences,             \
                                                                 const __grid_constant__ Strides strides, int group,      \
                                                                 float scale) {                                           \
        attend<D, true>(sequences, strides, group, scale);                                                                 \
    }
ATTEND(64)
ATTEND(80)
ATTEND(128)

__global__ void copy_rows(const __grid_constant__ Copies copies) {
    const Copy &copy = copies.of[blockIdx.y];
    for (int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x; i < copy.count; i += (int64_t)gridDim.x * blockDim.x) {
        copy.to[i] = copy.from[i];
        copy.also_to[i] = copy.also_from[i];
    }
}
}
