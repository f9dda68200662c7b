"use strict";

// The maps of one image: read from the page, and what follows from them.
//
// A share is a whole number out of report.levels; a weight is the square of its number in `who`.
// Results are compared by sums of whole numbers, so that they come out the same wherever they are
// computed.

const report = JSON.parse(document.getElementById("report").textContent);

// The maps of the image of this number, by name. Each is a list of planes, a byte a pixel.
async function readMaps(number) {
  const packed = atob(document.getElementById(`maps-${number}`).textContent);
  const bytes = Uint8Array.from(packed, (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const values = new Uint8Array(await new Response(stream).arrayBuffer());
  const [height, width] = report.images[number].shown;
  const maps = { number, height, width };
  let start = 0;
  for (const { name, count, differences } of report.planes) {
    maps[name] = Array.from({ length: count }, () => {
      const plane = values.subarray(start, (start += height * width));
      return differences ? summedUp(plane, height, width) : plane;
    });
  }
  return maps;
}

// Undo the differences from the pixel above, then those from the pixel to the left.
function summedUp(plane, height, width) {
  for (let i = width; i < plane.length; i++) plane[i] += plane[i - width];
  for (let y = 0; y < height; y++) {
    for (let i = y * width + 1; i < (y + 1) * width; i++) plane[i] += plane[i - 1];
  }
  return plane;
}

// The place of the largest value; of equals the first.
function largest(values) {
  let best = 0;
  for (let i = 1; i < values.length; i++) if (values[i] > values[best]) best = i;
  return best;
}

// Shares of the classes at a pixel, into `into`; the background, which has no plane, gets the
// rest. `first` is the place of the first class's plane.
function sharesAt(planes, first, pixel, into) {
  into[0] = report.levels;
  for (let c = 1; c < into.length; c++) {
    into[c] = planes[first + c - 1][pixel];
    into[0] -= into[c];
  }
  into[0] = Math.max(0, into[0]);
  return into;
}

// The class that an annotator would give to a pixel, whose shares come into `into`.
function labelAt(maps, annotator, pixel, into) {
  return largest(sharesAt(maps.annotator_foreground, annotator * (into.length - 1), pixel, into));
}

// Weights of a panel at a pixel, into `into`, and their sum. Where none has a weight, all have one.
function weightsAt(maps, panel, pixel, into) {
  let sum = 0;
  for (let i = 0; i < panel.length; i++) {
    const root = maps.who[panel[i]][pixel];
    into[i] = root * root;
    sum += into[i];
  }
  if (sum > 0) return sum;
  into.fill(1);
  return panel.length;
}

// Result, who and doubt as if only the annotators of the panel counted.
//
// With everybody, result, leader and unanimous are the model's own, from before the rounding.
function viewOf(maps, panel) {
  const everybody = panel.length === report.annotators.length;
  const pixels = maps.height * maps.width;
  const own = (name) => (everybody ? maps[name][0] : new Uint8Array(pixels));
  const seen = {
    panel,
    everybody,
    result: own("result"),
    leader: own("leader"),
    unanimous: own("unanimous"),
    entropy: new Float32Array(pixels), // 0: one class has it all, 1: all classes the same
    certainty: new Float32Array(pixels), // 0: all weigh the same, 1: one has all the weight
  };
  const weights = new Float64Array(panel.length);
  const mixed = new Float64Array(report.classes.length);
  const shares = new Float64Array(report.classes.length);
  const even = 1 / panel.length;
  for (let i = 0; i < pixels; i++) {
    const sum = weightsAt(maps, panel, i, weights);
    const first = largest(weights);
    const most = weights[first] / sum;
    seen.certainty[i] = panel.length === 1 ? 1 : Math.max(0, (most - even) / (1 - even));
    if (everybody) {
      sharesAt(maps.foreground, 0, i, mixed);
    } else {
      seen.unanimous[i] = mix(maps, panel, weights, i, mixed, shares) ? 1 : 0;
      seen.result[i] = largest(mixed);
      seen.leader[i] = panel[first];
    }
    seen.entropy[i] = entropy(mixed);
  }
  return seen;
}

// The sum of weight times share for each class, into `mixed`. Returns whether all of the panel
// would say the same class.
function mix(maps, panel, weights, pixel, mixed, shares) {
  const said = new Set();
  mixed.fill(0);
  for (let n = 0; n < panel.length; n++) {
    said.add(labelAt(maps, panel[n], pixel, shares));
    for (let c = 0; c < mixed.length; c++) mixed[c] += weights[n] * shares[c];
  }
  return said.size === 1;
}

// Of values in proportion to probabilities, as a share of the most there can be.
function entropy(values) {
  let all = 0;
  for (const value of values) all += value;
  let nats = 0;
  for (const value of values) if (value > 0) nats -= (value / all) * Math.log(value / all);
  return nats / Math.log(values.length);
}

// Everything that is told of a pixel; voices in the order of their weights.
function readingOf(maps, seen, pixel) {
  const weights = new Float64Array(seen.panel.length);
  const shares = new Float64Array(report.classes.length);
  const sum = weightsAt(maps, seen.panel, pixel, weights);
  const leader = seen.leader[pixel];
  const voices = seen.panel.map((annotator, place) => ({
    annotator,
    weight: weights[place] / sum,
    says: labelAt(maps, annotator, pixel, shares),
  }));
  // The leader is known from before the rounding, after which another may weigh the same.
  voices.sort((a, b) => (b.annotator === leader) - (a.annotator === leader) || b.weight - a.weight);
  return {
    leader,
    voices,
    result: seen.result[pixel],
    unanimous: seen.unanimous[pixel] === 1,
    kernel: maps.why[leader][pixel],
    share: seen.everybody ? maps.leader_share[0][pixel] : null,
  };
}
