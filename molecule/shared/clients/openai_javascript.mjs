// OpenAI's own package for JavaScript against the gateway: openai_javascript.mjs BASE_URL MODEL,… with the folder of node_modules in
// CITADEL_NODE_FOLDER. The checks are those of openai_python.py.
import assert from "node:assert/strict";
import { createRequire } from "node:module";

const require = createRequire(`${process.env.CITADEL_NODE_FOLDER}/`);
const OpenAI = require("openai");

const [baseURL, names] = process.argv.slice(2);
const models = names.split(",");
const apiKey = process.env.CITADEL_CLIENT_KEY ?? "EMPTY";
const limitedKey = process.env.CITADEL_LIMITED_KEY;
const client = new OpenAI({ baseURL, apiKey, maxRetries: 0 });

const messages = [{ role: "user", content: "Hello, how many models are there?" }];
const parameters = {
  type: "object",
  properties: { city: { type: "string", maxLength: 8 }, warm: { type: "boolean" } },
  required: ["city", "warm"],
  additionalProperties: false,
};
const answerTokens = 64;

async function check(name, look) {
  const began = performance.now();
  let saw, good;
  try {
    [saw, good] = [await look(), true];
  } catch (error) {
    [saw, good] = [`${error.constructor.name}: ${error.message}`.slice(0, 400), false];
  }
  console.log(JSON.stringify({ check: name, good, saw: String(saw), seconds: Math.round(performance.now() - began) / 1000 }));
}

async function raised(kind, act) {
  let answer;
  try {
    answer = await act();
  } catch (error) {
    assert.equal(error.constructor, kind);
    return error;
  }
  assert.fail(`no ${kind.name}, but ${JSON.stringify(answer)}`);
}

const chat = (options, other = client) => other.chat.completions.create({ model: models[0], messages, max_tokens: 6, ...options });

async function chats(model) {
  const answer = await chat({ model });
  assert.ok(answer.choices[0].message.content);
  assert.ok(answer.usage.completion_tokens <= 6);
  if (models.includes(model)) assert.equal(answer.model, model);
  return answer.model;
}

async function pieces(stream) {
  const seen = [];
  for await (const piece of stream) seen.push(piece);
  return seen;
}

const usages = (seen) => seen.filter((piece) => piece.usage).map((piece) => piece.usage.completion_tokens);

await check("models", async () => {
  const listed = [];
  for await (const model of client.models.list()) listed.push(model.id);
  assert.deepEqual(listed.sort(), [...models].sort());
  return listed;
});
await check("chat", () => chats(models[0]));
await check("chat, auto", () => chats("auto"));
await check("chat, no model", () => chats(null));
await check("chat, model left out", () => chats(undefined));
await check("stream", async () => {
  const seen = await pieces(await chat({ stream: true, stream_options: { include_usage: true } }));
  assert.ok(seen.flatMap((piece) => piece.choices).map((choice) => choice.delta.content ?? "").join(""));
  assert.deepEqual(usages(seen), [6]);
  return `${seen.length} pieces`;
});
await check("stream without usage", async () => {
  const seen = await pieces(await chat({ stream: true, model: "auto" }));
  assert.deepEqual(usages(seen), []);
  return `${seen.length} pieces`;
});
await check("stream with the helper", async () => {
  const stream = client.chat.completions.stream({ model: models[0], messages, max_tokens: 6, stream_options: { include_usage: true } });
  const answer = await stream.finalChatCompletion();
  assert.ok(answer.choices[0].message.content);
  assert.equal((await stream.totalUsage()).completion_tokens, 6);
  return answer.model;
});
await check("completion", async () => {
  const answer = await client.completions.create({ model: models[0], prompt: "once upon a time", max_tokens: 4 });
  assert.ok(answer.choices[0].text);
  return answer.model;
});
await check("completion, stream", async () => {
  const options = { model: models[0], prompt: "once", max_tokens: 6, stream: true, stream_options: { include_usage: true } };
  const seen = await pieces(await client.completions.create(options));
  assert.ok(seen.flatMap((piece) => piece.choices).map((choice) => choice.text).join(""));
  assert.deepEqual(usages(seen), [6]);
  return `${seen.length} pieces`;
});
await check("structured output", async () => {
  const format = { type: "json_schema", json_schema: { name: "place", strict: true, schema: parameters } };
  const answer = await chat({ max_tokens: answerTokens, temperature: 0, response_format: format });
  assert.equal(typeof JSON.parse(answer.choices[0].message.content).warm, "boolean");
  return answer.choices[0].message.content;
});
await check("tools", async () => {
  const tools = [{ type: "function", function: { name: "weather", parameters } }];
  const error = await raised(OpenAI.BadRequestError, () => chat({ tools }));
  assert.match(error.message, /tool/);
  return error.message;
});
await check("404", async () => {
  const error = await raised(OpenAI.NotFoundError, () => chat({ model: "gpt-4o" }));
  assert.equal(error.code, "model_not_found");
  return error.message;
});
await check("401", async () => {
  const other = new OpenAI({ baseURL, apiKey: "sk-nobody-has-this-key-0000000000000000", maxRetries: 0 });
  return (await raised(OpenAI.AuthenticationError, () => chat({}, other))).message;
});
await check("400", async () => {
  const error = await raised(OpenAI.BadRequestError, () => chat({ temperature: 5 }));
  assert.equal(error.param, "temperature");
  return error.message;
});
await check("too long", async () => {
  const long = [{ role: "user", content: "x y ".repeat(60_000) }];
  const error = await raised(OpenAI.BadRequestError, () => chat({ model: models.at(-1), messages: long }));
  assert.equal(error.code, "context_length_exceeded");
  return error.message;
});
await check("embeddings", async () => {
  const error = await raised(OpenAI.NotFoundError, () => client.embeddings.create({ model: "text-embedding-3-small", input: "Hello" }));
  return error.message;
});
if (limitedKey) {
  await check("429", async () => {
    const limited = new OpenAI({ baseURL, apiKey: limitedKey, maxRetries: 0 });
    await chat({}, limited);
    const error = await raised(OpenAI.RateLimitError, () => chat({}, limited));
    assert.ok(Number(error.headers.get("retry-after")) > 0);
    return error.message;
  });
}
