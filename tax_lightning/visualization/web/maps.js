"use strict";

// The maps of one image: read from the page, and what follows from them.
//
// A share is a whole number out of report.levels.

const report = JSON.parse(document.getElementById("report").textContent);
const STANDINGS = ["shared", "decides", "outvoted"]; // by the numbers in the map "standing"

// The maps of the image of this number, by name. Each is a list of planes, a byte a pixel.
async function readMaps(number) {
  const packed = atob(document.getElementById(`maps-${number}`).textContent);
  const bytes = Uint8Array.from(packed, (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const values = new Uint8Array(await new Response(stream).arrayBuffer());
  const { shown, planes } = report.images[number];
  const [height, width] = shown;
  const maps = { number, height, width };
  let start = 0;
  for (const { name, count } of planes) {
    const next = () => values.subarray(start, (start += height * width));
    maps[name] = Array.from({ length: count }, next);
  }
  return Object.assign(maps, measured(maps));
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

// The same of an annotator.
function ownSharesAt(maps, annotator, pixel, into) {
  return sharesAt(maps.annotator_foreground, annotator * (into.length - 1), pixel, into);
}

// The class that an annotator drew, where masks are at hand, else would draw, at every pixel.
function drawnBy(maps, annotator) {
  if (maps.masks) return maps.masks[annotator].map((label) => (label === 255 ? 0 : label));
  const shares = new Float64Array(report.classes.length);
  return maps.result[0].map((_, i) => largest(ownSharesAt(maps, annotator, i, shares)));
}

// Values of every pixel: expected votes for the result, in [0, N]; dispute, the expected share of
// pairs of annotators who differ; and how unsure the result is, from 0 to 1.
function measured(maps) {
  const [people, classes] = [report.annotators.length, report.classes.length];
  const pixels = maps.result[0].length;
  const [votes, dispute, unsure] = [0, 0, 0].map(() => new Float32Array(pixels));
  const shares = new Float64Array(classes);
  const sums = new Float64Array(classes);
  for (let i = 0; i < pixels; i++) {
    let same = 0;
    sums.fill(0);
    for (let n = 0; n < people; n++) {
      ownSharesAt(maps, n, i, shares);
      for (let c = 0; c < classes; c++) {
        sums[c] += shares[c];
        same -= shares[c] * shares[c];
      }
    }
    for (const sum of sums) same += sum * sum;
    votes[i] = sums[maps.result[0][i]] / report.levels;
    const pairs = people * (people - 1) * report.levels ** 2;
    dispute[i] = people > 1 ? Math.max(0, 1 - same / pairs) : 0;
    unsure[i] = entropy(sharesAt(maps.foreground, 0, i, shares));
  }
  return { votes, dispute, unsure };
}

// Of values in proportion to probabilities, as a share of the most there can be.
function entropy(values) {
  let all = 0;
  for (const value of values) all += value;
  let nats = 0;
  for (const value of values) if (value > 0) nats -= (value / all) * Math.log(value / all);
  return nats / Math.log(values.length);
}

// Everything that is told of a pixel. Voices for the result come with the probability of the
// result, those against it with the probability of what they would say.
function readingOf(maps, pixel) {
  const result = maps.result[0][pixel];
  const shares = new Float64Array(report.classes.length);
  const voices = report.annotators.map((_, annotator) => {
    ownSharesAt(maps, annotator, pixel, shares);
    const label = largest(shares);
    return { annotator, label, share: shares[label] / report.levels };
  });
  voices.sort((a, b) => b.share - a.share);
  const dissenter = maps.dissenter[0][pixel];
  const { label } = voices.find(({ annotator }) => annotator === dissenter);
  return {
    result,
    votes: maps.votes[pixel],
    undisputed: maps.undisputed[0][pixel] === 1,
    agreeing: voices.filter((voice) => voice.label === result),
    dissenting: voices.filter((voice) => voice.label !== result),
    reason: {
      annotator: maps.reason[0][pixel],
      kernel: maps.reason_kernel[0][pixel],
      label: result,
      share: maps.reason_share[0][pixel] / report.levels,
    },
    against:
      label === result
        ? null
        : { annotator: dissenter, kernel: maps.dissent_kernel[0][pixel], label },
    trust: maps.who && {
      leader: maps.leader[0][pixel],
      weight: maps.who[maps.leader[0][pixel]][pixel] / report.levels,
      standing: STANDINGS[maps.standing[0][pixel]],
    },
  };
}
