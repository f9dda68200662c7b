"use strict";

// The maps of one image: read from the page, and what they say of a pixel. Shares are in per cent.

const report = JSON.parse(document.getElementById("report").textContent);

// The maps of the image of this number, by name: a byte a pixel, or a list of such planes with one
// for each annotator.
async function readMaps(number) {
  const packed = atob(document.getElementById(`maps-${number}`).textContent);
  const bytes = Uint8Array.from(packed, (letter) => letter.charCodeAt(0));
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
  const values = new Uint8Array(await new Response(stream).arrayBuffer());
  const [height, width] = report.images[number].shown;
  const maps = { number, height, width };
  let start = 0;
  const next = () => values.subarray(start, (start += height * width));
  for (const name of report.planes) maps[name] = next();
  for (const name of report.annotator_planes) maps[name] = report.annotators.map(next);
  return maps;
}

// From 0, all weigh the same, to 1, one annotator has all the weight.
function certaintyAt(maps, pixel) {
  const even = 1 / report.annotators.length;
  if (even === 1) return 1;
  const most = maps.who[maps.leader[pixel]][pixel] / 100;
  return Math.max(0, (most - even) / (1 - even));
}

// The place of the example of a prototype with this label; -1 without one.
function exampleOf(annotator, kernel, label) {
  const { examples } = report.annotators[annotator].prototypes[kernel];
  return examples.find((example) => example.label === report.classes[label].name) || null;
}

// Everything that is told of a pixel; those who say the result first, by their probability.
function readingOf(maps, pixel) {
  const result = maps.result[pixel];
  const voices = report.annotators.map((_, annotator) => ({
    annotator,
    support: maps.support[annotator][pixel] / 100,
    weight: maps.who[annotator][pixel] / 100,
    says: maps.annotator_result[annotator][pixel],
  }));
  voices.sort((a, b) => b.support - a.support);
  const dissenter = maps.dissenter[pixel];
  const dissent = maps.annotator_result[dissenter][pixel];
  const reason = { annotator: maps.reason[pixel], kernel: maps.reason_kernel[pixel], label: result };
  const against = { annotator: dissenter, kernel: maps.why_own[dissenter][pixel], label: dissent };
  return {
    voices,
    result,
    reason,
    share: maps.reason_share[pixel] / 100,
    against: dissent === result ? null : against,
    undisputed: maps.undisputed[pixel] === 1,
    votes: (maps.votes[pixel] / 100) * report.annotators.length,
    leader: maps.leader[pixel],
    decides: maps.decides[pixel] === 1,
  };
}
