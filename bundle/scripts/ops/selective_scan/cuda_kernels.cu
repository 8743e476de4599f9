// The kernels of the selective scan's `cuda` backend; cuda_gpu.py compiles and launches them.
//
// A thread owns one channel: its state vector, rates and gradients stay in registers. A warp owns 32 channels
// of one chunk and walks over it in tiles of TILE positions. What a position shares between channels (B, C)
// goes through shared memory.
//
// Defined by the compiler's command line: STATES (a power of two, the padded number of states), and the
// storage types as 0 float, 1 bf16, 2 fp16: TYPE_U of u, z, y, dy and their gradients, TYPE_DELTA, TYPE_BC.

#define TILE 8
#define LANES 32
// Warps that shall fit on a multiprocessor: it bounds the registers of a thread. More states need more of them.
#ifndef BLOCKS
#define BLOCKS (STATES <= 16 ? 12 : 8)
#endif
#define LOG2_E 1.4426950408889634f

typedef long long int64;
typedef unsigned short half_bits;

template <int TYPE> struct Storage { typedef half_bits type; };
template <> struct Storage<0> { typedef float type; };

__device__ float as_float(float x, Storage<0>*) { return x; }
__device__ float as_float(half_bits x, Storage<1>*) { return __uint_as_float((unsigned)x << 16); }
__device__ float as_float(half_bits x, Storage<2>*) {
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x));
    return y;
}
__device__ float from_float(float x, Storage<0>*) { return x; }
__device__ half_bits from_float(float x, Storage<1>*) {
    // Round to nearest even; adding to a NaN's bits could make it infinite.
    unsigned bits = __float_as_uint(x);
    if (x != x) return (bits >> 16) | 0x40;
    return (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
}
__device__ half_bits from_float(float x, Storage<2>*) {
    half_bits y;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y) : "f"(x));
    return y;
}

// A (batch, length, n) tensor; strides in elements, 1 along n.
struct Sequence {
    void* data;
    int64 batch, time;
};

// The rows from one position on. Offsets inside a tile fit in 32 bits, the way to it need not.
template <int TYPE> struct Rows {
    typedef typename Storage<TYPE>::type type;
    type* data;
    int time;
    __device__ Rows(Sequence x, int64 batch, int64 start)
        : data((type*)x.data + batch * x.batch + start * x.time), time(x.time) {}
    __device__ Rows(type* data, int time) : data(data), time(time) {}
    __device__ Rows from(int t) const { return Rows(data + (int64)t * time, time); }
    __device__ type raw(int s, int i) const { return data[s * time + i]; }
    static __device__ float value(type x) { return as_float(x, (Storage<TYPE>*)0); }
    __device__ void store(int s, int i, float x) const { data[s * time + i] = from_float(x, (Storage<TYPE>*)0); }
};

__device__ float exp2_(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ float sigmoid(float x) { return __fdividef(1.0f, 1.0f + exp2_(-LOG2_E * x)); }
__device__ float softplus(float x) {
    // log1p(e) = 2 atanh(e / (2 + e)), as a series: log(1 + e) would lose the digits of a small e.
    float e = exp2_(-LOG2_E * fabsf(x));
    float s = __fdividef(e, 2.0f + e), r = s * s;
    float p = 1.0f / 17;
    p = p * r + 1.0f / 15;
    p = p * r + 1.0f / 13;
    p = p * r + 1.0f / 11;
    p = p * r + 1.0f / 9;
    p = p * r + 1.0f / 7;
    p = p * r + 1.0f / 5;
    p = p * r + 1.0f / 3;
    p = p * r + 1.0f;
    return (x < 0.0f ? 0.0f : x) + 2.0f * s * p;
}

struct Sizes {
    int length, channels, states, chunk, chunks, softplus, gated, saved_tiles;
};

// Where a warp works.
struct Place {
    int lane, warp, warps, chunk, d, steps;
    bool inside;
    int64 batch, start;
    __device__ Place(const Sizes& n) {
        lane = threadIdx.x % LANES;
        warp = threadIdx.x / LANES;
        warps = blockDim.x / LANES;
        chunk = blockIdx.x;
        d = (blockIdx.y * warps + warp) * LANES + lane;
        inside = d < n.channels;
        d = min(d, n.channels - 1);  // the lanes beyond read what they do not use
        batch = blockIdx.z;
        start = (int64)chunk * n.chunk;
        steps = min((int64)n.chunk, n.length - start);
    }
};

__device__ float step_size(float raw, bool apply_softplus) { return apply_softplus ? softplus(raw) : raw; }

__device__ void load_rates(float (&rate)[STATES], const float* A, int d, int states) {
#pragma unroll
    for (int n = 0; n < STATES; ++n) rate[n] = n < states ? A[(int64)d * states + n] * LOG2_E : 0.0f;
}

// TILE positions of one lane's channel, as they lie in memory: asked for one tile ahead of their use.
// Positions beyond the chunk, `left` or more, repeat its last one.
template <int TYPE> struct Column {
    typename Storage<TYPE>::type x[TILE];
    __device__ void load(const Rows<TYPE>& rows, int left, int d) {
#pragma unroll
        for (int s = 0; s < TILE; ++s) x[s] = rows.raw(min(s, left - 1), d);
    }
    __device__ float operator[](int s) const { return Rows<TYPE>::value(x[s]); }
};

// TILE rows of B or C, spread over THREADS threads; then in shared memory, with 0 for states beyond the last.
template <int THREADS> struct Table {
    static const int EACH = (TILE * STATES + THREADS - 1) / THREADS;
    typename Storage<TYPE_BC>::type x[EACH];
    __device__ void load(const Rows<TYPE_BC>& rows, int left, int states, int thread) {
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            int at = i * THREADS + thread;
            x[i] = rows.raw(min(at / STATES, left - 1), min(at % STATES, states - 1));
        }
    }
    __device__ void store(float* tile, int states, int thread) const {
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            int at = i * THREADS + thread;
            if (at < TILE * STATES) tile[at] = at % STATES < states ? Rows<TYPE_BC>::value(x[i]) : 0.0f;
        }
    }
};

// The STATES values of one position, the same for all lanes.
__device__ void broadcast(float (&x)[STATES], const float* row) {
#pragma unroll
    for (int n = 0; n < STATES; n += 4) {
        float4 v = *(const float4*)(row + n);
        x[n] = v.x, x[n + 1] = v.y, x[n + 2] = v.z, x[n + 3] = v.w;
    }
}

// Each chunk's end state from zero, x being u; in reverse q at the chunk's start, x being dy and B being C:
// q_t = a_t (C_t dy_t + q_(t+1)). And each chunk's sum of delta.
template <bool REVERSE>
__device__ void chunk_ends(Sequence x_, Sequence delta_, Sequence z_, Sequence B_, const float* A, const float* bias,
                           float* ends, float* sums, Sizes size) {
    __shared__ __align__(16) float tile[TILE * STATES];
    __shared__ float steps[TILE][LANES], values[TILE][LANES];
    Place at(size);
    Rows<TYPE_U> x(x_, at.batch, at.start), z(z_, at.batch, at.start);
    Rows<TYPE_DELTA> delta(delta_, at.batch, at.start);
    Rows<TYPE_BC> B(B_, at.batch, at.start);
    float rate[STATES], h[STATES], total = 0.0f, bias_d = bias ? bias[at.d] : 0.0f;
    load_rates(rate, A, at.d, size.states);
#pragma unroll
    for (int n = 0; n < STATES; ++n) h[n] = 0.0f;
    bool gated = REVERSE && size.gated;
    int tiles = (at.steps + TILE - 1) / TILE;
    Column<TYPE_U> next_x, next_z;
    Column<TYPE_DELTA> next_delta;
    Table<LANES> next_B;
    auto load = [&](int i) {
        int t0 = (REVERSE ? tiles - 1 - i : i) * TILE, left = at.steps - t0;
        next_delta.load(delta.from(t0), left, at.d);
        next_x.load(x.from(t0), left, at.d);
        if (gated) next_z.load(z.from(t0), left, at.d);
        next_B.load(B.from(t0), left, size.states, at.lane);
    };
    load(0);
#pragma unroll 1
    for (int i = 0; i < tiles; ++i) {
        int left = at.steps - (REVERSE ? tiles - 1 - i : i) * TILE;
#pragma unroll
        for (int s = 0; s < TILE; ++s) {
            float d = s < left ? step_size(next_delta[s] + bias_d, size.softplus) : 0.0f;
            float v = REVERSE ? (gated ? next_x[s] * next_z[s] * sigmoid(next_z[s]) : next_x[s]) : d * next_x[s];
            steps[s][at.lane] = d;
            values[s][at.lane] = s < left ? v : 0.0f;
            total += d;
        }
        next_B.store(tile, size.states, at.lane);
        __syncwarp();
        if (i + 1 < tiles) load(i + 1);
#pragma unroll 2
        for (int k = 0; k < TILE; ++k) {
            int s = REVERSE ? TILE - 1 - k : k;
            float d = steps[s][at.lane], v = values[s][at.lane], b[STATES];
            broadcast(b, tile + s * STATES);
#pragma unroll
            for (int n = 0; n < STATES; ++n) {
                float a = exp2_(d * rate[n]);
                h[n] = REVERSE ? a * (h[n] + v * b[n]) : a * h[n] + v * b[n];
            }
        }
        __syncwarp();
    }
    if (!at.inside) return;
    int64 part = at.batch * size.chunks + at.chunk;
    sums[part * size.channels + at.d] = total;
#pragma unroll
    for (int n = 0; n < STATES; ++n)
        if (n < size.states) ends[(part * size.states + n) * size.channels + at.d] = h[n];
}

extern "C" __global__ void __launch_bounds__(LANES, BLOCKS)
    forward_ends(Sequence u, Sequence delta, Sequence z, Sequence B, const float* A, const float* bias, float* ends,
                 float* sums, Sizes size) {
    chunk_ends<false>(u, delta, z, B, A, bias, ends, sums, size);
}
extern "C" __global__ void __launch_bounds__(LANES, BLOCKS)
    backward_ends(Sequence dy, Sequence delta, Sequence z, Sequence C, const float* A, const float* bias, float* ends,
                  float* sums, Sizes size) {
    chunk_ends<true>(dy, delta, z, C, A, bias, ends, sums, size);
}

// In place, each chunk's end from zero becomes the state that enters it. Block (32 channels, state, batch).
#define ROWS 16
extern "C" __global__ void __launch_bounds__(LANES)
    chunk_starts(float* ends, const float* sums, const float* A, const float* initial, float* last, Sizes size,
                 int reverse) {
    int d = blockIdx.x * LANES + threadIdx.x, n = blockIdx.y;
    int64 batch = blockIdx.z;
    if (d >= size.channels) return;
    int64 boundary = (batch * size.channels + d) * size.states + n;  // initial and last: (batch, channels, states)
    float rate = A[(int64)d * size.states + n] * LOG2_E, h = initial ? initial[boundary] : 0.0f;
    int64 row = batch * size.chunks + (reverse ? size.chunks - 1 : 0);
    int64 next_end = (int64)(reverse ? -1 : 1) * size.states * size.channels;
    int next_sum = reverse ? -size.channels : size.channels;
    float* to = ends + (row * size.states + n) * size.channels + d;
    const float *from = to, *from_sum = sums + row * size.channels + d;
    float end[ROWS], total[ROWS];
    auto load = [&](int left) {
#pragma unroll
        for (int r = 0; r < ROWS; ++r, from += next_end, from_sum += next_sum)
            if (r < left) end[r] = *from, total[r] = *from_sum;
    };
    load(size.chunks);
#pragma unroll 1
    for (int left = size.chunks; left > 0; left -= ROWS) {
        float now[ROWS], decay[ROWS];
#pragma unroll
        for (int r = 0; r < ROWS; ++r) now[r] = end[r], decay[r] = exp2_(total[r] * rate);
        load(left - ROWS);  // asked for before these are used: the loads take longer than the arithmetic
#pragma unroll
        for (int r = 0; r < ROWS; ++r, to += next_end)
            if (r < left) *to = h, h = decay[r] * h + now[r];
    }
    last[boundary] = h;
}

// y from each chunk's true start state; if there is `saved`, also the state before each tile.
extern "C" __global__ void __launch_bounds__(LANES, BLOCKS)
    outputs(Sequence u_, Sequence delta_, Sequence z_, Sequence B_, Sequence C_, const float* A, const float* D,
            const float* bias, const float* starts, Sequence y_, float* saved, Sizes size) {
    __shared__ __align__(16) float tile_B[TILE * STATES], tile_C[TILE * STATES];
    __shared__ float steps[TILE][LANES], values[TILE][LANES], gates[TILE][LANES];
    Place at(size);
    Rows<TYPE_U> u(u_, at.batch, at.start), z(z_, at.batch, at.start), y(y_, at.batch, at.start);
    Rows<TYPE_DELTA> delta(delta_, at.batch, at.start);
    Rows<TYPE_BC> B(B_, at.batch, at.start), C(C_, at.batch, at.start);
    float rate[STATES], h[STATES], bias_d = bias ? bias[at.d] : 0.0f, D_d = D ? D[at.d] : 0.0f;
    load_rates(rate, A, at.d, size.states);
    int64 part = at.batch * size.chunks + at.chunk;
#pragma unroll
    for (int n = 0; n < STATES; ++n)
        h[n] = n < size.states ? starts[(part * size.states + n) * size.channels + at.d] : 0.0f;
    if (saved) saved += (at.batch * size.saved_tiles + at.start / TILE) * size.channels * size.states + at.d;
    Column<TYPE_U> next_u, next_z;
    Column<TYPE_DELTA> next_delta;
    Table<LANES> next_B, next_C;
    auto load = [&](int t0) {
        int left = at.steps - t0;
        next_delta.load(delta.from(t0), left, at.d);
        next_u.load(u.from(t0), left, at.d);
        if (size.gated) next_z.load(z.from(t0), left, at.d);
        next_B.load(B.from(t0), left, size.states, at.lane);
        next_C.load(C.from(t0), left, size.states, at.lane);
    };
    load(0);
#pragma unroll 1
    for (int t0 = 0; t0 < at.steps; t0 += TILE) {
        int left = at.steps - t0;
#pragma unroll
        for (int s = 0; s < TILE; ++s) {
            steps[s][at.lane] = s < left ? step_size(next_delta[s] + bias_d, size.softplus) : 0.0f;
            values[s][at.lane] = s < left ? next_u[s] : 0.0f;
            gates[s][at.lane] = size.gated ? next_z[s] * sigmoid(next_z[s]) : 1.0f;
        }
        next_B.store(tile_B, size.states, at.lane);
        next_C.store(tile_C, size.states, at.lane);
        __syncwarp();
        if (t0 + TILE < at.steps) load(t0 + TILE);
        if (saved && at.inside) {
#pragma unroll
            for (int n = 0; n < STATES; ++n)
                if (n < size.states) saved[n * size.channels] = h[n];
            saved += size.channels * size.states;
        }
        Rows<TYPE_U> ys = y.from(t0);
#pragma unroll 2
        for (int s = 0; s < TILE; ++s) {
            float d = steps[s][at.lane], x = values[s][at.lane], v = d * x, out = D_d * x, b[STATES], c[STATES];
            broadcast(b, tile_B + s * STATES);
            broadcast(c, tile_C + s * STATES);
#pragma unroll
            for (int n = 0; n < STATES; ++n) {
                h[n] = exp2_(d * rate[n]) * h[n] + v * b[n];
                out += h[n] * c[n];
            }
            if (at.inside && s < left) ys.store(s, at.d, out * gates[s][at.lane]);
        }
        __syncwarp();
    }
}

// Sums VALUES numbers over the 32 lanes, each lane ending with VALUES / 32 of them (two lanes with the same one
// where VALUES is 16): at each step half of a lane's numbers go to its partner, for the other half.
template <int VALUES, int LANE> struct Reduce {
    static __device__ void run(float* v, int lane) {
        bool upper = lane & LANE;
#pragma unroll
        for (int i = 0; i < VALUES / 2; ++i) {
            float give = upper ? v[i] : v[i + VALUES / 2], keep = upper ? v[i + VALUES / 2] : v[i];
            v[i] = keep + __shfl_xor_sync(~0u, give, LANE);
        }
        Reduce<VALUES / 2, LANE / 2>::run(v, lane);
    }
};
template <int LANE> struct Reduce<1, LANE> {
    static __device__ void run(float* v, int lane) {
        v[0] += __shfl_xor_sync(~0u, v[0], LANE);
        Reduce<1, LANE / 2>::run(v, lane);
    }
};
template <int VALUES> struct Reduce<VALUES, 0> {
    static __device__ void run(float*, int) {}
};
template <> struct Reduce<1, 0> {
    static __device__ void run(float*, int) {}
};

// One warp's shared memory in `gradients`: the state before each position, and what depends on (position, lane).
struct WarpTile {
    float before[TILE][STATES][LANES];
    float step[TILE][LANES], raw[TILE][LANES], u[TILE][LANES], gate[TILE][LANES], dy[TILE][LANES];
    float sums[TILE][2 * STATES];
};

// One chunk of one batch item, tiles from the last to the first, positions likewise: with q_(t+1) from behind,
// g_t = C_t dy_t + q_(t+1) is the state's gradient and q_t = a_t g_t goes on. dB and dC are summed over the
// block's channels, dA (at A), dD and dbias over the chunk. Dynamic shared memory: 2 tiles, then a WarpTile a warp.
extern "C" __global__ void __launch_bounds__(2 * LANES) gradients(
    Sequence u_, Sequence delta_, Sequence z_, Sequence B_, Sequence C_, const float* A, const float* D,
    const float* bias, Sequence dy_, const float* saved, const float* carry, Sequence du_, Sequence ddelta_,
    Sequence dz_, float* dB, float* dC, float* dA, float* dD, float* dbias, Sizes size) {
    extern __shared__ __align__(16) float shared[];
    float *tile_B = shared, *tile_C = shared + TILE * STATES;
    WarpTile* warp_tiles = (WarpTile*)(shared + 2 * TILE * STATES);
    Place at(size);
    WarpTile& mine = warp_tiles[at.warp];
    int lane = at.lane;
    Rows<TYPE_U> u(u_, at.batch, at.start), z(z_, at.batch, at.start), dy(dy_, at.batch, at.start);
    Rows<TYPE_U> du(du_, at.batch, at.start), dz(dz_, at.batch, at.start);
    Rows<TYPE_DELTA> delta(delta_, at.batch, at.start), ddelta(ddelta_, at.batch, at.start);
    Rows<TYPE_BC> B(B_, at.batch, at.start), C(C_, at.batch, at.start);
    float rate[STATES], q[STATES], sum_A[STATES], sum_D = 0.0f, sum_bias = 0.0f;
    load_rates(rate, A, at.d, size.states);
    float bias_d = bias ? bias[at.d] : 0.0f, D_d = D ? D[at.d] : 0.0f;
    int64 part = at.batch * size.chunks + at.chunk;
#pragma unroll
    for (int n = 0; n < STATES; ++n) {
        q[n] = n < size.states ? carry[(part * size.states + n) * size.channels + at.d] : 0.0f;
        sum_A[n] = 0.0f;
    }
    int tiles = (at.steps + TILE - 1) / TILE;
    saved += (at.batch * size.saved_tiles + at.start / TILE + tiles - 1) * size.channels * size.states + at.d;
    int64 first_row = (at.batch * gridDim.y + blockIdx.y) * size.length + at.start;
    Column<TYPE_U> next_u, next_z, next_dy;
    Column<TYPE_DELTA> next_delta;
    float next_h[STATES];
    auto load = [&](int t0) {
        int left = at.steps - t0;
        next_delta.load(delta.from(t0), left, at.d);
        next_u.load(u.from(t0), left, at.d);
        next_dy.load(dy.from(t0), left, at.d);
        if (size.gated) next_z.load(z.from(t0), left, at.d);
#pragma unroll
        for (int n = 0; n < STATES; ++n) next_h[n] = n < size.states ? saved[n * size.channels] : 0.0f;
        saved -= size.channels * size.states;
    };
    load((tiles - 1) * TILE);
#pragma unroll 1
    for (int t0 = (tiles - 1) * TILE; t0 >= 0; t0 -= TILE) {
        int left = at.steps - t0;
        Rows<TYPE_U> dus = du.from(t0), dzs = dz.from(t0);
        Rows<TYPE_DELTA> ddeltas = ddelta.from(t0);
        // The block's B and C come late: the columns above hide most of the wait.
        if (threadIdx.x < 2 * LANES) {
            Table<LANES> table;
            float* tile = threadIdx.x < LANES ? tile_B : tile_C;
            table.load((threadIdx.x < LANES ? B : C).from(t0), left, size.states, lane);
            table.store(tile, size.states, lane);
        }
        if (blockDim.x == LANES) {
            Table<LANES> table;
            table.load(C.from(t0), left, size.states, lane);
            table.store(tile_C, size.states, lane);
        }
        float h[STATES];
#pragma unroll
        for (int n = 0; n < STATES; ++n) h[n] = next_h[n];
#pragma unroll
        for (int s = 0; s < TILE; ++s) {
            float raw = next_delta[s] + bias_d;
            // 0 beyond the chunk and the channels: they must not add to dB and dC.
            mine.u[s][lane] = at.inside && s < left ? next_u[s] : 0.0f;
            mine.dy[s][lane] = at.inside && s < left ? next_dy[s] : 0.0f;
            if (size.gated) mine.gate[s][lane] = next_z[s];
            mine.raw[s][lane] = raw;
            mine.step[s][lane] = s < left ? step_size(raw, size.softplus) : 0.0f;
        }
        __syncthreads();
        if (t0 > 0) load(t0 - TILE);
#pragma unroll 2
        for (int s = 0; s < TILE; ++s) {
            float d = mine.step[s][lane], v = d * mine.u[s][lane], b[STATES];
            broadcast(b, tile_B + s * STATES);
#pragma unroll
            for (int n = 0; n < STATES; ++n) {
                mine.before[s][n][lane] = h[n];
                h[n] = exp2_(d * rate[n]) * h[n] + v * b[n];
            }
        }
#pragma unroll 1
        for (int s = TILE - 1; s >= 0; --s) {
            float d = mine.step[s][lane], x = mine.u[s][lane], dout = mine.dy[s][lane], v = d * x;
            float gate = 0.0f, gate_sigmoid = 0.0f, dgate = 0.0f;
            if (size.gated) {
                gate = mine.gate[s][lane];
                gate_sigmoid = sigmoid(gate);
                // d SiLU(z) / dz = sigmoid(z) (1 + z - SiLU(z))
                dgate = dout * gate_sigmoid * (1.0f + gate - gate * gate_sigmoid);
                dout *= gate * gate_sigmoid;
            }
            float b[STATES], c[STATES], shares[2 * STATES], out = D_d * x, dv = 0.0f, dexponent = 0.0f;
            broadcast(b, tile_B + s * STATES);
            broadcast(c, tile_C + s * STATES);
#pragma unroll
            for (int n = 0; n < STATES; ++n) {
                float before = mine.before[s][n][lane];
                float a = exp2_(d * rate[n]);
                float after = a * before + v * b[n];
                out += after * c[n];
                float g = c[n] * dout + q[n];
                shares[n] = g * v;
                shares[STATES + n] = after * dout;
                dv += g * b[n];
                q[n] = a * g;
                float w = q[n] * before;
                sum_A[n] += w * d;
                dexponent += w * rate[n];
            }
            float dstep = dv * x + dexponent * (1.0f / LOG2_E);
            if (size.softplus) dstep *= sigmoid(mine.raw[s][lane]);
            if (at.inside && s < left) {
                sum_D += dout * x;
                sum_bias += dstep;
                dus.store(s, at.d, dv * d + D_d * dout);
                ddeltas.store(s, at.d, dstep);
                if (size.gated) dzs.store(s, at.d, dgate * out);
            }
            Reduce<2 * STATES, LANES / 2>::run(shares, lane);
            if (STATES >= 16) {
#pragma unroll
                for (int i = 0; i < STATES / 16; ++i) mine.sums[s][lane * (STATES / 16) + i] = shares[i];
            } else if (lane % (16 / STATES) == 0) {
                mine.sums[s][lane / (16 / STATES)] = shares[0];
            }
        }
        __syncthreads();
        for (int i = threadIdx.x; i < TILE * 2 * STATES; i += blockDim.x) {
            int s = i / (2 * STATES), n = i % (2 * STATES);
            float total = 0.0f;
            for (int w = 0; w < at.warps; ++w) total += warp_tiles[w].sums[s][n];
            float* out = n < STATES ? dB : dC;
            n %= STATES;
            if (s < left && n < size.states) out[(first_row + t0 + s) * size.states + n] = total;
        }
        // The next tile overwrites B, C and sums; its first barrier comes after it has written B and C.
        __syncthreads();
    }
    if (!at.inside) return;
    dD[part * size.channels + at.d] = sum_D;
    dbias[part * size.channels + at.d] = sum_bias;
#pragma unroll
    for (int n = 0; n < STATES; ++n)
        if (n < size.states) dA[(part * size.states + n) * size.channels + at.d] = sum_A[n];
}
