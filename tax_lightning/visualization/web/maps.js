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

function kernelAt(maps, pixel) {
  return maps.why[maps.leader[pixel]][pixel];
}

// Everything that is told of a pixel; voices in the order of their weights.
function readingOf(maps, pixel) {
  const leader = maps.leader[pixel];
  const voices = report.annotators.map((_, annotator) => ({
    annotator,
    weight: maps.who[annotator][pixel] / 100,
    says: maps.annotator_result[annotator][pixel],
  }));
  // The leader is known from before the rounding, after which another may weigh the same.
  voices.sort((a, b) => (b.annotator === leader) - (a.annotator === leader) || b.weight - a.weight);
  return {
    leader,
    voices,
    result: maps.result[pixel],
    unanimous: maps.unanimous[pixel] === 1,
    kernel: kernelAt(maps, pixel),
    share: maps.leader_share[pixel] / 100,
  };
}
