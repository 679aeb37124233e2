// Proposals and detections: `detect::proposals` and `detect::nms`. A box has a key, its score before its index (`key_of`): sorting by
// falling key is sorting by falling score, equal scores by rising index, as the CPU's stable sorts do. A key of 0 means "no box".
// What is done per FPN level or per group has the group on the grid's y axis.

// Keys of a level's logits, objectness [anchors, cells], at flat index cell * anchors + anchor (torchvision's order). NaN proposes nothing.
KERNEL(rpn_keys)(const float* objectness, u64* keys, int anchors, int cells, int start) {
    PHASE {
        int i = THREAD;
        if (i >= anchors * cells) continue;
        float logit = objectness[i % anchors * cells + i / anchors];
        keys[start + i] = logit != logit ? 0 : key_of(logit, i);
    }
}

// Radix selection of each group's `remaining` highest keys, eight bits at a time from the top (`shift` 56 to 0): counts the values of
// the next digit among the keys that share the digits found so far. keys of group g lie at starts[g] to starts[g + 1].
KERNEL(select_count)(const u64* keys, const u32* starts, const u64* prefix, u32* histogram, int shift) {
    __shared__ u32 counts[256];
    u32 group = blockIdx.y, end = starts[group + 1];
    u64 known = prefix[group];
    PHASE counts[threadIdx.x] = 0;
    PHASE {
        for (u32 i = starts[group] + THREAD; i < end; i += gridDim.x * THREADS) {
            bool shares = shift == 56 || keys[i] >> (shift + 8) == known >> (shift + 8);
            if (shares) atomicAdd(&counts[keys[i] >> shift & 255], 1);
        }
    }
    PHASE if (counts[threadIdx.x]) atomicAdd(&histogram[256 * group + threadIdx.x], counts[threadIdx.x]);
}

// The digit of the last key that is among the highest; the histogram is empty afterwards. One block per group, on the y axis.
KERNEL(select_digit)(u32* histogram, u64* prefix, u32* remaining, int shift) {
    __shared__ u32 counts[256];
    u32 group = blockIdx.y;
    PHASE {
        counts[threadIdx.x] = histogram[256 * group + threadIdx.x];
        histogram[256 * group + threadIdx.x] = 0;
    }
    PHASE {
        if (threadIdx.x != 0) continue;
        u32 left = remaining[group];
        int digit = 255;
        while (digit > 0 && counts[digit] < left) left -= counts[digit--];
        remaining[group] = left;
        prefix[group] |= (u64)digit << shift;
    }
}

// The keys from the one that was found upwards, in any order: at most `limit` per group, chosen [groups, limit].
KERNEL(select_take)(const u64* keys, const u32* starts, const u64* prefix, u32* counters, u64* chosen, int limit) {
    PHASE {
        u32 group = blockIdx.y, end = starts[group + 1];
        u64 least = prefix[group] ? prefix[group] : 1;
        for (u32 i = starts[group] + THREAD; i < end; i += gridDim.x * THREADS) {
            if (keys[i] < least) continue;
            u32 place = atomicAdd(&counters[group], 1);
            if (place < (u32)limit) chosen[(u64)group * limit + place] = keys[i];
        }
    }
}

// The `limit` highest of each group's keys by falling key: keys [groups, count] to sorted [groups, limit], which starts as zeros. A
// key's place is the number of greater ones: no two are equal.
KERNEL(rank)(const u64* keys, u64* sorted, int count, int limit) {
    __shared__ u64 tile[THREADS];
    u32 group = blockIdx.y;
    const u64* own = keys + (u64)group * count;
    __shared__ int places[THREADS];
    PHASE places[threadIdx.x] = 0;
    for (int start = 0; start < count; start += THREADS) {
        PHASE tile[threadIdx.x] = start + (int)threadIdx.x < count ? own[start + threadIdx.x] : 0;
        PHASE {
            int i = THREAD;
            if (i >= count || own[i] == 0) continue;
            int greater = 0;
            for (int j = 0; j < THREADS; ++j) greater += tile[j] > own[i];
            places[threadIdx.x] += greater;
        }
    }
    PHASE {
        int i = THREAD;
        if (i < count && own[i] != 0 && places[threadIdx.x] < limit) sorted[(u64)group * limit + places[threadIdx.x]] = own[i];
    }
}

// Decodes one level's proposals in the order of `sorted` [limit]: clipped boxes, and keys of their objectness whose index counts from
// `first`, 0 where a box is too small or its score too low. deltas [4 * anchors, cells]; base [anchors] are the anchors at the origin.
KERNEL(rpn_decode)(const u64* sorted, const float* objectness, const float* deltas, const Box* base, Box* boxes, float* scores, u64* keys,
                   int limit, int first, int anchors, int cells, int columns, int stride_x, int stride_y, float width, float height,
                   float min_size, float threshold) {
    PHASE {
        int i = THREAD;
        if (i >= limit) continue;
        int place = first + i;
        keys[place] = 0;
        if (sorted[i] == 0) continue;
        int index = index_of(sorted[i]), cell = index / anchors, anchor = index % anchors;
        float x = (float)(cell % columns * stride_x), y = (float)(cell / columns * stride_y);
        Box r = base[anchor];
        r = Box{r.x1 + x, r.y1 + y, r.x2 + x, r.y2 + y};
        const float* d = deltas + (u64)4 * anchor * cells + cell;
        Box box = clipped(decode_box(r, d[0], d[cells], d[2 * cells], d[3 * cells]), width, height);
        float score = 1.0f / (1.0f + expf(-objectness[anchor * cells + cell]));
        boxes[place] = box;
        scores[place] = score;
        if (is_box(box, min_size) && score >= threshold) keys[place] = key_of(score, place);
    }
}

// Which later boxes of the group each box would suppress: mask [groups, count, words], bit b of word w for box 32 w + b.
KERNEL(nms_mask)(const Box* boxes, const u64* keys, u32* mask, int count, int words, float iou) {
    PHASE {
        int i = THREAD;
        if (i >= count * words) continue;
        u64 group = (u64)blockIdx.y * count;
        int own = i / words, word = i % words;
        u32 bits = 0;
        if (keys[group + own] != 0) {
            for (int b = 0; b < 32; ++b) {
                int other = 32 * word + b;
                if (other <= own || other >= count || keys[group + other] == 0) continue;
                if (iou_of(boxes[group + own], boxes[group + other]) > iou) bits |= 1u << b;
            }
        }
        mask[group * words + i] = bits;
    }
}

#define MAX_WORDS 256

// Greedy NMS over each group's boxes in their order: the keys of suppressed ones become 0. One block per group.
KERNEL(nms_sweep)(const u32* mask, u64* keys, int count, int words) {
    __shared__ u32 removed[MAX_WORDS];
    __shared__ u32 kept[1];
    u64 group = (u64)blockIdx.y * count;
    PHASE for (int w = threadIdx.x; w < words; w += THREADS) removed[w] = 0;
    for (int w = 0; w < words; ++w) {
        // A word's boxes are settled one after the other, then what they suppress further on all at once.
        PHASE {
            if (threadIdx.x != 0) continue;
            u32 gone = removed[w], stay = 0;
            for (int b = 0; b < 32; ++b) {
                int i = 32 * w + b;
                if (i >= count || keys[group + i] == 0) continue;
                if (gone >> b & 1) {
                    keys[group + i] = 0;
                    continue;
                }
                stay |= 1u << b;
                gone |= mask[(group + i) * words + w];
            }
            kept[0] = stay;
        }
        PHASE {
            for (int later = w + 1 + threadIdx.x; later < words; later += THREADS) {
                u32 gone = removed[later];
                for (int b = 0; b < 32; ++b) {
                    if (kept[0] >> b & 1) gone |= mask[(group + 32 * w + b) * words + later];
                }
                removed[later] = gone;
            }
        }
    }
}

// The boxes and scores of `sorted` keys; an empty box and score -1 where there is none.
KERNEL(take_boxes)(const u64* sorted, const Box* boxes, const float* scores, Box* out_boxes, float* out_scores, int count) {
    PHASE {
        int i = THREAD;
        if (i >= count) continue;
        bool is = sorted[i] != 0;
        out_boxes[i] = is ? boxes[index_of(sorted[i])] : Box{0, 0, 0, 0};
        out_scores[i] = is ? scores[index_of(sorted[i])] : -1.0f;
    }
}

// The person class of each RoI: logits [count, 2], deltas [count, 8] class-major. `present` are the RoIs' own keys.
KERNEL(detect)(const Box* rois, const u64* present, const float* logits, const float* deltas, Box* boxes, float* scores, u64* keys,
               int count, float wx, float wy, float ww, float wh, float width, float height, float threshold, float min_side) {
    PHASE {
        int i = THREAD;
        if (i >= count) continue;
        float highest = fmaxf(logits[2 * i], logits[2 * i + 1]);
        float background = expf(logits[2 * i] - highest), person = expf(logits[2 * i + 1] - highest);
        float score = person / (background + person);
        const float* d = deltas + 8 * i + 4;
        Box box = clipped(decode_box(rois[i], d[0] / wx, d[1] / wy, d[2] / ww, d[3] / wh), width, height);
        boxes[i] = box;
        scores[i] = score;
        keys[i] = present[i] != 0 && score > threshold && is_box(box, min_side) ? key_of(score, i) : 0;
    }
}
