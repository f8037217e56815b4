// The page: puts the parts together. What is shown always follows from the annotations and the session.

import * as edit from "./annotations.js";
import { Api } from "./api.js";
import { Connection } from "./connection.js";
import { Editor } from "./editor.js";
import { Everything } from "./everything.js";
import { EXPORTS, save } from "./exports.js";
import { History } from "./history.js";
import { followIntake } from "./intake.js";
import { followShortcuts } from "./keyboard.js";
import { Panel } from "./panel.js";
import { readPicture } from "./picture.js";
import { Segmenter } from "./segmenter.js";
import { Session, chosenOf } from "./session.js";
import { shapeOf } from "./shapes.js";
import { Status } from "./status.js";
import { followTheme } from "./theme.js";

const byId = (id) => document.getElementById(id);

const api = new Api();
const connection = new Connection(api, { changed: refresh, recovered: () => model ?? learnModel() });
const segmenter = new Segmenter(connection, refresh);
let history = new History(edit.NOTHING);
let session = null;
let complaint = null;
let opening = 0;
let model = null;

const commands = {
  include: (at) => addPoint(at, 1),
  exclude: (at) => addPoint(at, 0),
  box: (box) => commit(edit.withBox(history.present, box)),
  newThing: () => session && commit(edit.withNewThing(history.present)),
  remove: (id) => commit(edit.without(history.present, id)),
  removeActive: () => edit.active(history.present) && commands.remove(history.present.activeId),
  rename(id, label) {
    const before = history.present.things.find((thing) => thing.id === id);
    if (before && label && label !== before.label) commit(edit.withLabel(history.present, id, label));
    else refresh();
  },
  activate(id) {
    if (id === history.present.activeId) return;
    history.amend(edit.withActive(history.present, id));
    refresh();
  },
  choose(index) {
    const thing = edit.active(history.present);
    const result = thing && session?.results.get(edit.promptKey(thing));
    if (result?.masks[index] && index !== chosenOf(thing, result)) commit(edit.withChoice(history.present, index));
  },
  undo: () => history.undo() && refresh(),
  redo: () => history.redo() && refresh(),
  say: (words) => status.say(words),
  speak: (words) => status.speak(words),
  async download(kind) {
    const { suffix, make } = EXPORTS[kind];
    const { picture } = session;
    const name = picture.name.replace(/\.[^.]*$/, "") + suffix;
    save(await make(picture, found()), name);
    status.say(`Saved ${name}.`);
  },
};

const status = new Status(retry);
const panel = new Panel(commands);
const editor = new Editor(byId("canvas"), commands);
const everything = new Everything(api, {
  session: () => session,
  found: addFound,
  failed: complain,
  say: commands.say,
});

function addPoint({ x, y }, label) {
  commit(edit.withPoint(history.present, { x: Math.floor(x), y: Math.floor(y), label }));
}

/** List masks that came without a prompt, in one step. */
function addFound(masks, tripMs) {
  let next = history.present;
  for (const mask of masks) {
    next = edit.withNewThing(next, mask);
    session.results.set(edit.promptKey(edit.active(next)), { masks: [mask], tripMs, serverMs: null });
  }
  if (masks.length > 0) commit(next);
  status.say(`${masks.length} objects found.`);
}

function complain(error) {
  complaint = error;
  refresh();
}

function commit(next) {
  if (!session) return;
  history.commit(next);
  refresh();
}

/** Open a picture: a file, or what `load` brings. */
async function open(load, name) {
  const turn = (opening += 1);
  complaint = null;
  status.reading(true);
  try {
    const picture = await readPicture(await load(), name);
    // Meanwhile another one was opened.
    if (turn !== opening) return;
    session = new Session(api, picture);
    history = new History(edit.NOTHING);
    status.say("Reading the picture.");
    editor.open(picture);
  } catch (error) {
    if (turn === opening) complaint = error;
  }
  refresh();
}

function retry() {
  complaint = null;
  if (session) {
    session.failures.clear();
    if (session.phase === "failed") session.phase = "new";
  }
  if (connection.trouble) connection.tryNow();
  if (!model) learnModel();
  refresh();
}

/** What has a mask, as the downloads want it. */
function found() {
  return history.present.things.flatMap(({ id, label, ...thing }) => {
    const result = session?.results.get(edit.promptKey({ id, ...thing }));
    return result ? [{ id, label, mask: result.masks[chosenOf(thing, result)] }] : [];
  });
}

function refresh() {
  const annotations = history.present;
  segmenter.want(session, annotations);
  const isPending = (thing) => segmenter.isPending(thing);
  const pending = annotations.things.some(isPending);
  const isReading = session !== null && (session.phase === "new" || session.phase === "sending");
  panel.show(annotations, session, isPending, found());
  editor.show(session, annotations);
  byId("undo").disabled = !history.canUndo;
  byId("redo").disabled = !history.canRedo;
  everything.show(session);
  byId("empty").hidden = session !== null;
  status.reading(isReading && !connection.trouble);
  const state = stateOf(isReading, pending);
  if (state === "ready") tell(edit.active(annotations));
  else if (state === "waiting") status.say("Waiting for the server. What you do meanwhile is kept.");
  else if (state === "failed") status.say("");
  document.body.dataset.phase = state;
  showProblem(annotations);
}

function stateOf(isReading, pending) {
  if (connection.trouble) return "waiting";
  if (!session) return "empty";
  if (session.phase === "failed") return "failed";
  if (isReading) return "reading";
  return pending ? "segmenting" : "ready";
}

/** Say what the active object's mask is, or what to do next. */
function tell(thing) {
  const result = thing && session.results.get(edit.promptKey(thing));
  if (!result) {
    status.say(thing ? `${thing.label}: click on it, or drag a box around it.` : "Ready: click on anything in the picture.");
    return;
  }
  const index = chosenOf(thing, result);
  const mask = result.masks[index];
  const share = (100 * shapeOf(mask).area) / (session.picture.width * session.picture.height);
  const which = result.masks.length > 1 ? ` (candidate ${index + 1} of ${result.masks.length})` : "";
  const size = share > 0 ? `${share.toFixed(share < 10 ? 1 : 0)} % of the picture` : "empty";
  status.say(`${thing.label}: score ${mask.score.toFixed(2)}, ${size}${which}.`);
}

function showProblem(annotations) {
  if (connection.trouble) {
    status.problem(connection.trouble, { canRetry: true, secondsLeft: connection.secondsLeft });
    return;
  }
  const thing = edit.active(annotations);
  const failure = session?.phase === "failed" ? session.error : thing && session?.failures.get(edit.promptKey(thing));
  const error = complaint ?? failure ?? null;
  const wantsKey = error?.reason === "UNAUTHENTICATED";
  if (wantsKey) askForKey();
  status.problem(wantsKey ? null : error, { canRetry: Boolean(failure) });
}

function askForKey() {
  if (!byId("key-form").hidden) return;
  byId("key-form").hidden = false;
  byId("key").focus();
}

/** Show what is served, and offer what it can do. */
async function learnModel() {
  try {
    const { body } = await api.get("model/registry");
    model = body.models[0];
  } catch (error) {
    if (error.reason === "UNAUTHENTICATED") askForKey();
    else if (error.transient) connection.lose(error);
    else complaint = error;
    refresh();
    return;
  }
  byId("model").hidden = false;
  byId("model").textContent = model.model_id.replace(/^sam\//, "");
  byId("model-notice").hidden = !model.warning;
  byId("model-notice").textContent = model.warning ?? "";
  everything.offer().catch((error) => error.transient && connection.lose(error));
}

function openSample() {
  open(() => api.file("sample.jpg"), "sample.jpg");
}

followTheme(byId("theme"));
followShortcuts(commands);
followIntake(
  { file: byId("file"), openers: [byId("open"), byId("empty-open")] },
  (file) => open(() => file, file.name || "pasted.png"),
  (words) => complain(new Error(words)),
);
byId("sample").addEventListener("click", openSample);
byId("empty-sample").addEventListener("click", openSample);
byId("undo").addEventListener("click", commands.undo);
byId("redo").addEventListener("click", commands.redo);
byId("help").addEventListener("click", () => byId("help-dialog").showModal());
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  api.key = byId("key").value;
  byId("key").value = "";
  byId("key-form").hidden = true;
  retry();
});
learnModel();
refresh();
