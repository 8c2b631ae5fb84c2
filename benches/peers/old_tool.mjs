// The old tool's store, in a process of its own: `node old_tool.mjs MODULES DIRECTORY`. Speaks what worker.py explains.
// The old tool made up its vectors from a hash of the text, so only its store is compared: vectors are given.

import { createRequire } from 'node:module';
import { createInterface } from 'node:readline';
import { readFileSync } from 'node:fs';
import path from 'node:path';

const LIMIT = 10;
const [modules, directory] = process.argv.slice(2);
// Libraries may print; standard output is for answers alone.
console.log = console.error;
const vectordb = createRequire(path.join(modules, 'package.json'))('vectordb');
const database = await vectordb.connect(path.join(directory, 'old-tool'));
let table;

/** An item with the columns that the old tool had. */
function row(item, vector) {
  const { id, text, type, agent, session_id } = item;
  const timestamp = new Date().toISOString();
  return { id, vector, text, type, project_id: 'default', session_id, agent, timestamp, metadata: '{}' };
}

const work = {
  vector: (call) => table.search(call.vector).limit(LIMIT).execute(),
  add: (call) => table.add([row(call.item, call.vector)]),
};

async function fill(request) {
  const items = readFileSync(request.items, 'utf8').trim().split('\n').map((line) => JSON.parse(line));
  const bytes = readFileSync(request.vectors);
  const all = new Float32Array(bytes.buffer, bytes.byteOffset, bytes.length / 4);
  const width = all.length / items.length;
  const rows = items.map((item, n) => row(item, Array.from(all.subarray(n * width, (n + 1) * width))));
  await database.createTable('items', rows);
}

async function timed(run, calls) {
  const ms = [];
  for (const call of calls) {
    const begun = performance.now();
    await run(call);
    ms.push(performance.now() - begun);
  }
  return ms;
}

async function together(run, { calls, callers, seconds }) {
  const end = performance.now() + seconds * 1000;
  let done = 0;
  const caller = async (number) => {
    while (performance.now() < end) {
      await run(calls[number % calls.length]);
      number += 7; // Not the same order for all.
      if (performance.now() < end) done += 1;
    }
  };
  await Promise.all(Array.from({ length: callers }, (_, number) => caller(number)));
  return done / seconds;
}

async function answer(request) {
  switch (request.do) {
    case 'fill':
      await fill(request);
      return {};
    case 'open':
      table = await database.openTable('items');
      return {};
    case 'upkeep':
      return {}; // It had none.
    case 'together':
      return { per_second: await together(work[request.op], request) };
    default:
      return { ms: await timed(work[request.op], request.calls) };
  }
}

for await (const line of createInterface({ input: process.stdin })) {
  let result;
  try {
    result = await answer(JSON.parse(line));
  } catch (error) {
    result = { error: String(error) };
  }
  process.stdout.write(JSON.stringify(result) + '\n');
}
process.exit(0);
