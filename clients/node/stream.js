'use strict';
// Rows through one ModelStreamInfer call: JSON lines in, JSON lines out.
//
//     node stream.js MODEL [ADDRESS] < rows.jsonl

const readline = require('node:readline');
const { pipeline } = require('node:stream/promises');
const { Client } = require('./client');
const { encode, decode } = require('./tensors');

// The client's side of a stream of rows. A request is open until it is answered; its id is its line's number.
class Rows {
  open = new Set();
  allSent = false;
  answered = 0;
  failed = 0;

  constructor(client, input) {
    this.client = client;
    this.input = input;
  }

  // Turns lines into requests.
  async *requests(lines) {
    let number = 0;
    for await (const line of lines) {
      number += 1;
      if (line.trim() === '') continue;
      const id = String(number);
      let tensor;
      try {
        tensor = this.tensor(line);
      } catch (error) {
        process.stdout.write(this.answer(id, { error: error.message })); // the server never sees it
        continue;
      }
      this.open.add(id);
      yield this.client.request(this.input.name, tensor, id);
    }
    this.allSent = true;
  }

  // A row that lacks just the first dimension is a batch of one.
  tensor(line) {
    const { shape, raw } = encode(JSON.parse(line));
    return { raw, shape: shape.length === this.input.shape.length - 1 ? [1, ...shape] : shape };
  }

  // Turns responses into lines.
  async *answers(responses) {
    for await (const { error_message: error, infer_response: response } of responses) {
      const id = response?.id ?? '';
      if (!this.open.delete(id)) {
        throw new Error(`the server answered a request that is not open, id '${id}': ${error}`);
      }
      yield this.answer(id, error ? { error } : decode(response));
    }
    if (this.open.size > 0) throw new Error(`the server ended the stream; unanswered requests: ${this.open.size}`);
    if (!this.allSent) throw new Error('the server ended the stream before the input did');
  }

  answer(id, fields) {
    this.answered += 1;
    if (fields.error) this.failed += 1;
    return `${JSON.stringify({ id, ...fields })}\n`;
  }
}

async function send(rows, call) {
  const lines = readline.createInterface({ input: process.stdin });
  try {
    // pipeline heeds what every write() returns: each part waits for the one behind it, from stdout back to stdin.
    await pipeline(
      lines,
      (source) => rows.requests(source),
      call,
      (source) => rows.answers(source),
      process.stdout,
    );
  } finally {
    call.cancel(); // does nothing to a call that has ended
    process.stdin.destroy(); // else a failed program would wait for its input to end
  }
  if (rows.failed > 0) throw new Error(`${rows.failed} of ${rows.answered} rows failed`);
}

async function main([model, address = 'localhost:8001']) {
  if (!model) {
    throw new Error('usage: node stream.js MODEL [ADDRESS] < rows.jsonl');
  }
  const client = new Client(address, model);
  try {
    await send(new Rows(client, await client.describeInput()), client.stream());
  } catch (error) {
    throw new Error(client.explain(error));
  } finally {
    client.close();
  }
}

main(process.argv.slice(2)).catch((error) => {
  console.error(`stream: ${error.message}`);
  process.exitCode = 1;
});
