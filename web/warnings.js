// Shows what the nodes warn of, as a toast for each node that has something to say. It stays until
// it is closed, its cause is gone or another workflow is opened; the text on the node itself goes
// with the run on newer pages.

import { api } from "../../scripts/api.js";
import { app } from "../../scripts/app.js";

const shown = new Map(); // by the id of its node: a function that takes the toast away

function takeAway(node) {
  shown.get(node)?.();
  shown.delete(node);
}

function show({ node, text }) {
  takeAway(node);
  if (!text) return;
  const title = app.graph.getNodeById(node)?.title ?? "AnimateDiff-Lightning";
  const toasts = app.extensionManager.toast;
  if (toasts.dismiss) {
    // newer frontends
    const id = toasts.warning(title, { description: text });
    shown.set(node, () => toasts.dismiss(id));
  } else {
    const toast = { severity: "warn", summary: title, detail: text };
    toasts.add(toast);
    shown.set(node, () => toasts.remove(toast));
  }
}

app.registerExtension({
  name: "AnimateDiffLightning.warnings",
  beforeConfigureGraph() {
    [...shown.keys()].forEach(takeAway);
  },
  setup() {
    api.addEventListener("animatediff_lightning.warning", ({ detail }) => show(detail));
  },
});
