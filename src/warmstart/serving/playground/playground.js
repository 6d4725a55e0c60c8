"use strict";
// Everything that comes from a model or a person is set as text, never as markup.

const by = (id) => document.getElementById(id);
let description = null;

function made(tag, text, cls) {
  const node = document.createElement(tag);
  if (text !== undefined) node.textContent = text;
  if (cls) node.className = cls;
  return node;
}

function show(...nodes) {
  by("result").replaceChildren(...nodes);
}

async function asked(path, options) {
  const answer = await fetch(path, options);
  const body = await answer.json();
  if (!answer.ok) throw new Error(body.error ? body.error.message : answer.status);
  return body;
}

function fieldsOf(task) {
  return description[task] || [{ name: "text", list: false, required: true, doc: "" }];
}

function drawFields() {
  const chosen = by("model").selectedOptions[0];
  const nodes = [];
  for (const field of fieldsOf(chosen.dataset.task)) {
    const label = made("label", field.list ? field.name + " (one a line)" : field.name);
    label.htmlFor = "field-" + field.name;
    label.title = field.doc;
    if (!field.required) label.append(made("span", " (optional)", "optional"));
    const box = made("textarea");
    box.id = "field-" + field.name;
    box.required = field.required;
    box.rows = field.required ? 4 : 2;
    if (!field.required) box.className = "small";
    box.dataset.name = field.name;
    box.dataset.list = field.list ? "1" : "";
    nodes.push(label, box);
  }
  by("fields").replaceChildren(...nodes);
  by("fields").querySelector("textarea").focus();
}

function row() {
  const found = {};
  for (const box of by("fields").querySelectorAll("textarea")) {
    if (!box.value && !box.required) continue;
    found[box.dataset.name] = box.dataset.list
      ? box.value.split("\n").map((line) => line.trim()).filter((line) => line)
      : box.value;
  }
  return found;
}

function scoresOf(prediction) {
  if (prediction.scores && !Array.isArray(prediction.scores)) return Object.entries(prediction.scores);
  if (Array.isArray(prediction.labels) && Array.isArray(prediction.scores))
    return prediction.labels.map((label, i) => [label, prediction.scores[i]]);
  return null;
}

function drawn(prediction) {
  const nodes = [];
  const scores = scoresOf(prediction);
  if (scores) {
    for (const [label, score] of scores.sort((a, b) => b[1] - a[1]).slice(0, 20)) {
      const line = made("div", undefined, "score");
      const name = made("div", undefined, "name");
      name.append(made("span", label), made("span", score.toFixed(4)));
      const bar = made("progress");
      bar.max = 1;
      bar.value = Math.min(1, Math.max(0, score));
      bar.setAttribute("aria-label", label);
      line.append(name, bar);
      nodes.push(line);
    }
  } else {
    const rest = { ...prediction };
    if (Array.isArray(rest.embedding) && rest.embedding.length > 8)
      rest.embedding = rest.embedding.slice(0, 8).concat("… " + prediction.embedding.length + " values");
    nodes.push(made("pre", JSON.stringify(rest, null, 2)));
  }
  const notes = [prediction.tokens + " tokens"].concat(prediction.flags);
  if (prediction.truncated) notes.push("the text was cut: the rest was not seen");
  nodes.push(made("p", notes.join(" · "), "note"));
  return nodes;
}

let busy = false;

async function send(event) {
  if (event) event.preventDefault();
  if (busy || !by("form").reportValidity()) return;
  busy = true; // the button stays enabled: one that is not would lose the keyboard's focus
  by("send").setAttribute("aria-busy", "true");
  try {
    const prediction = await asked("/v1/predict/" + encodeURIComponent(by("model").value), {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(row()),
    });
    show(...drawn(prediction));
  } catch (error) {
    show(made("p", error.message, "error"));
  } finally {
    busy = false;
    by("send").removeAttribute("aria-busy");
  }
}

async function begin() {
  by("form").addEventListener("submit", send);
  by("form").addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) send(event);
  });
  by("model").addEventListener("change", drawFields);
  try {
    const listed = await asked("/v1/models");
    description = Object.fromEntries(listed.data.map((model) => [model.task, model.fields]));
    for (const model of listed.data) {
      const option = made("option", model.id + " · " + model.task);
      option.value = model.id;
      option.dataset.task = model.task;
      by("model").append(option);
    }
    drawFields();
    await fromLink();
  } catch (error) {
    show(made("p", error.message, "error"));
  }
}

// /#text=good fills the boxes and predicts: a link to a try. What is after # is never sent but as a row.
async function fromLink() {
  const given = new URLSearchParams(location.hash.slice(1));
  if (given.has("model") && [...by("model").options].some((one) => one.value === given.get("model"))) {
    by("model").value = given.get("model");
    drawFields();
  }
  let filled = false;
  for (const box of by("fields").querySelectorAll("textarea")) {
    if (!given.has(box.dataset.name)) continue;
    box.value = given.get(box.dataset.name);
    filled = true;
  }
  if (filled) await send();
}

begin();
