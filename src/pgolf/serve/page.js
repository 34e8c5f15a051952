"use strict";
const by = id => document.getElementById(id);
const NAMES = {model: "model", ttt: "with TTT", memory: "with TTT and memory"};
const SHORT = {model: "model", ttt: "TTT", memory: "memory"};
const COLORS = [0, 2, 1];  // Of the ways' bars, in the numbers of reports.
const HOTTEST = 12;  // Bits that take the strongest colour, as in reports.
const STRONGEST = 0.56, PAUSE = 350, MOST_CHANGES = 8;
let about, found = null, way = 0, change = -1, chosen = null, working = null, timer = 0, before = [];

function make(tag, text, kind) {
  const part = document.createElement(tag);
  part.textContent = text ?? "";
  if (kind) part.className = kind;
  return part;
}

const row = (...cells) => { const line = make("tr"); line.append(...cells); return line; };
const round = (number, digits) => number.toLocaleString("en", {minimumFractionDigits: digits, maximumFractionDigits: digits});
const sum = numbers => numbers.reduce((all, one) => all + one, 0);
const visible = text => text.replace(/\n/g, "↵\n").replace(/\t/g, "→\t");
const inline = text => text.replace(/\n/g, "↵").replace(/\t/g, "→").replace(/^ | $/g, "␣");

function say(text, bad = false) {
  by("state").textContent = text;
  by("state").classList.toggle("bad", bad);
}

function bar(share, kind = "") {
  const line = make("i", "", kind);
  line.style.width = `${Math.max(0, Math.min(100, 100 * share))}%`;
  return line;
}

// What a token's colour shows: its bits, or how many of them a way has won (green) or lost.
function paint(part, bits) {
  const shown = change < 0 ? bits[way] : bits[change] - bits[way];
  const strength = STRONGEST * Math.min(Math.abs(shown) / (change < 0 ? HOTTEST : HOTTEST / 2), 1);
  part.style.background = `rgb(var(--${change < 0 || shown < 0 ? "heat" : "won"}) / ${strength.toFixed(3)})`;
}

function token(text, bits, end) {
  const part = make("span", visible(text));
  part.title = bits.map((one, index) => `${NAMES[about.ways[index]]}: ${round(one, 2)} bits`).join("\n");
  part.bits = bits;
  part.end = end;
  paint(part, bits);
  return part;
}

async function post(path, body, signal) {
  const answer = await fetch(path, {
    method: "POST", signal, headers: {"content-type": "application/json"}, body: JSON.stringify(body),
  });
  if (!answer.ok) throw new Error((await answer.json()).error.message);
  return answer;
}

// One piece of work at a time: what is newer ends what is older.
async function work(doing) {
  clearTimeout(timer);
  working?.abort();
  const own = working = new AbortController();
  try {
    await doing(own.signal);
  } catch (error) {
    if (error.name !== "AbortError") say(error.message, true);
  } finally {
    if (working === own) {
      working = null;
      by("view").classList.remove("stale");
    }
  }
}

function analyse() {
  const text = by("text").value;
  by("view").classList.add("stale");
  return work(async signal => {
    found = await (await post("/analyze", {text}, signal)).json();
    chosen = null;
    say("");
    show();
  });
}

function choose(place) {
  const text = by("text").value, spans = [...by("view").children];
  if (!found || !spans.length) return;
  chosen = Math.max(0, Math.min(place, spans.length - 1));
  const at = chosen ? spans[chosen - 1].end : 0;
  mark();
  work(async signal => {
    showNext((await (await post("/analyze", {text, at}, signal)).json()).next, spans[chosen].textContent);
  });
}

function mark() {
  [...by("view").children].forEach((part, index) => part.classList.toggle("chosen", index === chosen));
}

function show() {
  by("view").replaceChildren(...found.tokens.map(one => token(one.text, one.bits, one.end)));
  showLegend();
  showNext(found.next);
  showSizes();
  showChanges();
}

function showLegend() {
  const levels = change < 0 ? [0, 4, 8, 12] : [-6, -3, 0, 3, 6];
  const parts = levels.map(level => {
    const part = make("span", level);
    paint(part, change < 0 ? Array(about.ways.length).fill(level) : Object.assign([], {[way]: 0, [change]: level}));
    return part;
  });
  const what = change < 0 ? "bits" : "bits won; red: lost";
  by("legend").replaceChildren("Click a token to see what else could have stood there.", ...parts, ` ${what}`);
}

function showNext(next, instead) {
  by("place").textContent = instead ? `In place of “${inline(instead.replace(/↵\n/g, "\n"))}”.` : "After the text.";
  const last = about.ways.length - 1;
  by("keys").replaceChildren(...(last ? about.ways : []).map((one, index) => {
    const key = make("li");
    key.append(make("i", "", `mark b${COLORS[index]}`), NAMES[one] + (index === last ? " (and %)" : ""));
    return key;
  }));
  by("likeliest").replaceChildren(...next.slice(0, 10).map(one => {
    const cell = make("td", "", "bar");
    cell.append(...one.p.map((share, index) => bar(share, `b${COLORS[index]}`)));
    return row(make("td", inline(one.text), "token"), make("td", `${round(100 * one.p[last], 1)} %`, "n"), cell);
  }));
}

function showSizes() {
  const {text, normalised, xz} = found.bytes;
  const sizes = [["text", text], ["xz -9e", xz], ...found.bits.map((bits, index) => [NAMES[about.ways[index]], bits / 8])];
  const largest = Math.max(...sizes.map(([, size]) => size), 1);
  by("sizes").replaceChildren(...sizes.map(([name, size], index) => {
    const cell = make("td", "", "bar"), each = index < 2 ? text : normalised;
    cell.append(bar(size / largest));
    const rate = each ? round(8 * size / each, 3) : "–";
    return row(make("td", name), make("td", round(size, index < 2 ? 0 : 1), "n"), make("td", rate, "n"), cell);
  }));
  const folded = normalised === text ? "" : ` The tokenizer makes ${round(normalised, 0)} bytes of the text.`;
  by("fine").textContent = `The model's sizes are its bits divided by 8, without the model's own ${round(about.bytes, 0)} bytes.${folded}`;
}

// The tokens whose bits differ most between the model alone and its last way.
function showChanges() {
  const last = about.ways.length - 1;
  by("changed").hidden = !last || !found.tokens.length;
  if (by("changed").hidden) return;
  const most = found.tokens.map((one, index) => ({...one, index}));
  most.sort((one, other) => Math.abs(other.bits[0] - other.bits[last]) - Math.abs(one.bits[0] - one.bits[last]));
  by("changed-head").replaceChildren(row(make("th", "token"), make("th", "after"),
    ...about.ways.map(one => make("th", SHORT[one], "n")), make("th", "won", "n")));
  by("changed-rows").replaceChildren(...most.slice(0, MOST_CHANGES).map(one => {
    const context = found.tokens.slice(Math.max(0, one.index - 4), one.index).map(part => part.text).join("");
    return row(make("td", inline(one.text), "token"), make("td", "…" + inline(context.slice(-24)), "token"),
      ...one.bits.map(bits => make("td", round(bits, 2), "n")), make("td", round(one.bits[0] - one.bits[last], 2), "n"));
  }));
}

function showWays() {
  const choices = about.ways.map((one, index) => [NAMES[one], index, -1]);
  if (about.ways.includes("ttt")) choices.push(["won by TTT", 1, 0]);
  if (about.ways.length > 1 && about.ways.at(-1) === "memory") {
    choices.push(["won by memory", about.ways.length - 1, about.ways.length - 2]);
  }
  by("ways").replaceChildren(...(choices.length > 1 ? choices : []).map(([name, first, second]) => {
    const button = make("button", name);
    button.type = "button";
    button.setAttribute("aria-pressed", String(first === way && second === change));
    button.onclick = () => {
      [way, change] = [first, second];
      showWays();
      showLegend();
      [...by("view").children].forEach(part => paint(part, part.bits));
      mark();
    };
    return button;
  }));
}

async function* events(answer) {
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = "";;) {
    const {value, done} = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      if (part === "data: [DONE]") return;
      const event = JSON.parse(part.slice(6));
      if (event.error) throw new Error(event.error.message);
      yield event;
    }
  }
}

function write() {
  const prompt = by("text").value, body = {prompt, stream: true, logprobs: 5, memory: by("memory").checked};
  body.max_tokens = Number(by("tokens").value);
  for (const key of ["temperature", "top_p"]) body[key] = Number(by(key).value);
  if (by("seed").value) body.seed = Number(by("seed").value);
  before.push(prompt);
  by("write").hidden = !(by("stop").hidden = false);
  [way, change, chosen] = [body.memory ? about.ways.length - 1 : 0, -1, null];
  showWays();
  return work(async signal => {
    const started = performance.now(), view = by("view");
    let text = prompt, count = 0, waiting = 0;
    const prompted = found && found.tokens.map(one => one.text).join("") === prompt ? found.tokens : [];
    view.replaceChildren(...(prompted.length ? prompted.map(one => token(one.text, one.bits, one.end)) : [make("span", prompt)]));
    showLegend();
    try {
      for await (const event of events(await post("/v1/completions", body, signal))) {
        const {text: part, logprobs} = event.choices[0];
        waiting -= sum(logprobs.token_logprobs) / Math.LN2;
        count += logprobs.tokens.length;
        if (part) {
          const span = token(part, Array(about.ways.length).fill(waiting));
          span.title = `${round(waiting, 2)} bits`;
          span.classList.add("new");
          view.append(span);
          waiting = 0;
          view.scrollTop = view.scrollHeight;
        }
        text = by("text").value = text + part;
        const top = logprobs.top_logprobs.at(-1);
        if (top) showLive(top);
        say(`${count} tokens, ${round(count / (performance.now() - started) * 1000, 0)} per second`);
      }
    } finally {
      by("write").hidden = !(by("stop").hidden = true);
      by("back").disabled = false;
    }
    timer = setTimeout(analyse, 0);
  });
}

// While text is written: what the newest token was drawn from.
function showLive(top) {
  const entries = Object.entries(top).sort((one, other) => other[1] - one[1]);
  by("place").textContent = "Where the newest token was drawn.";
  by("keys").replaceChildren();
  by("likeliest").replaceChildren(...entries.map(([text, log]) => {
    const cell = make("td", "", "bar");
    cell.append(bar(Math.exp(log)));
    return row(make("td", inline(text), "token"), make("td", `${round(100 * Math.exp(log), 1)} %`, "n"), cell);
  }));
}

by("form").onsubmit = event => { event.preventDefault(); write(); };
by("stop").onclick = () => { working?.abort(); timer = setTimeout(analyse, 0); };
by("back").onclick = () => {
  by("text").value = before.pop();
  by("back").disabled = !before.length;
  analyse();
};
by("text").oninput = () => {
  clearTimeout(timer);
  timer = setTimeout(analyse, PAUSE);
};
by("text").onkeydown = event => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) by("form").requestSubmit();
};
by("view").onclick = event => {
  if (event.target.end !== undefined) choose([...by("view").children].indexOf(event.target));
};
by("view").onkeydown = event => {
  const step = {ArrowLeft: -1, ArrowRight: 1}[event.key];
  if (step && found) { event.preventDefault(); choose((chosen ?? found.tokens.length) + step); }
};
by("theme").onclick = () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
};

(async () => {
  about = await (await fetch("/about")).json();
  document.title = `${about.model}: pgolf`;
  by("name").textContent = about.model;
  by("about").textContent = `${about.file}, ${round(about.bytes, 0)} bytes; ${round(about.parameters, 0)} parameters, ` +
    `${round(about.window, 0)} tokens of context`;
  by("tokens").max = about.max_tokens;
  by("remember").hidden = !about.ways.includes("memory");
  way = about.ways.length - 1;
  showWays();
  await analyse();
})();
