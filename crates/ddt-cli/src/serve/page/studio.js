// The page: what the buttons do, and the one job that it follows.

import { call, cancel, follow, submit } from "/api.js";
import { Classes, Settings } from "/form.js";
import { History } from "/history.js";
import { Results, seconds } from "/results.js";
import { Sharing } from "/sharing.js";

const byId = (id) => document.getElementById(id);
const JOB = "job";

function say(text, isBad = false) {
  byId("status").textContent = text;
  byId("status").classList.toggle("bad", isBad);
}

class Studio {
  constructor(presets, names) {
    Object.assign(this, { presets, names });
    this.classes = new Classes(names);
    this.first = new Settings("settings-a", "Settings", presets);
    this.other = new Settings("settings-b", "Other settings", presets);
    this.other.value = presets.presets.at(-1).settings;
    this.history = new History(names, (it) => this.restore(it));
    this.sharing = new Sharing((settings, plan) => this.tryPlan(settings, plan), (settings, plan) => {
      this.first.value = { ...settings, sharing: plan };
      say("The first settings now use the plan.");
    });
    const { shown } = presets;
    byId("images").value = shown.images;
    byId("seed").value = shown.seed;
    this.classes.chosen = [shown.class];
    byId("compare").addEventListener("change", () => this.showCompare());
    byId("form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.start({ generate: { request: this.request(), settings: this.settings() } });
    });
    byId("cancel").addEventListener("click", () => this.job && cancel(this.job).catch((error) => say(error.message, true)));
    byId("measure").addEventListener("click", () => this.measure());
    this.showCompare();
    this.busy(null);
    say("Ready.");
  }

  request() {
    const { batch, rng } = this.presets.shown;
    const classes = this.classes.chosen;
    return { classes, images_per_class: Number(byId("images").value), seed: Number(byId("seed").value), rng, batch };
  }

  settings() {
    return byId("compare").checked ? [this.first.value, this.other.value] : [this.first.value];
  }

  showCompare() {
    const compares = byId("compare").checked;
    byId("settings-b").hidden = !compares;
    // Fields that are not shown must not refuse the form.
    byId("settings-b").querySelector("fieldset").disabled = !compares;
  }

  restore({ request, settings }) {
    this.classes.chosen = request.classes;
    byId("images").value = request.images_per_class;
    byId("seed").value = request.seed;
    this.first.value = settings[0];
    byId("compare").checked = settings.length > 1;
    if (settings.length > 1) this.other.value = settings[1];
    this.showCompare();
    byId("generate").focus();
  }

  measure() {
    const images = Number(byId("measured-images").value);
    const order = Number(byId("measured-order").value);
    const settings = { ...this.first.value, sharing: "none" };
    this.start({ measure: { settings, images, order, seed: Number(byId("seed").value) } });
  }

  tryPlan(settings, plan) {
    const both = [{ ...settings, sharing: "none" }, { ...settings, sharing: plan }];
    this.start({ generate: { request: this.request(), settings: both } }, plan);
  }

  async start(submission, plan = null) {
    this.busy("pending");
    byId("cancel").disabled = true;
    say("Submitting.");
    try {
      const { id } = await submit(submission);
      this.follow({ id, submission, plan });
    } catch (error) {
      this.busy(null);
      say(error.wait ? `${error.message}.` : `Not started: ${error.message}.`, true);
    }
  }

  busy(job) {
    this.job = job;
    for (const id of ["generate", "try"]) byId(id).disabled = Boolean(job);
    byId("measure").disabled = Boolean(job) || !this.presets.can_measure;
    byId("cancel").disabled = !job;
    if (!job) sessionStorage.removeItem(JOB);
  }

  /** Follows a job to its end; a page that is loaded again goes on with it. */
  follow(started) {
    const { id, submission, plan } = started;
    this.busy(id);
    sessionStorage.setItem(JOB, JSON.stringify(started));
    const generate = submission.generate;
    const results = generate && new Results(id, generate, this.names);
    byId("progress").value = 0;
    byId("detail").textContent = "";
    byId("runs").dataset.job = generate ? "running" : "none";
    const end = (text, isBad) => {
      this.busy(null);
      byId("runs").dataset.job = isBad ? "ended" : "done";
      byId("detail").textContent = "";
      say(text, isBad);
    };
    follow(id, {
      queued: ({ ahead }) => say(ahead ? `Waiting: ${ahead} jobs before this one.` : "Waiting for the sampler."),
      running: () => say(generate ? "Generating." : "Measuring."),
      step: (it) => this.progress(it),
      preview: (it) => results?.draw(it),
      done: async () => {
        byId("progress").value = 1;
        try {
          if (generate) {
            const result = await results.finish();
            const thumbnail = results.runs[0].tiles[0].canvas.toDataURL();
            end(`Done in ${seconds(result.runs.reduce((sum, it) => sum + it.seconds, 0))}.`, false);
            if (plan && this.sharing.measured) this.sharing.tried(plan, result);
            // The job is done even if the history cannot have it.
            await this.history.add(id, generate, result, thumbnail)
              .catch((error) => { byId("detail").textContent = `Not kept in the history: ${error.message}.`; });
          } else {
            await this.sharing.finish(id, submission.measure.settings);
            end("Measured.", false);
          }
        } catch (error) {
          end(error.message, true);
        }
      },
      failed: ({ message }) => end(`Failed: ${message}.`, true),
      cancelled: ({ message }) => end(`Stopped: ${message}.`, true),
      interrupted: () => say("The connection was lost; trying again.", true),
      lost: () => end("The server no longer has this job; it may have started again. Your settings are still here: generate again.", true),
    });
  }

  progress({ run, runs, finished, images, step, num_steps, share, seconds: since }) {
    byId("progress").value = (run + share) / runs;
    const part = runs > 1 ? `settings ${run + 1} of ${runs}, ` : "";
    byId("detail").textContent = `${part}${finished} of ${images} images, step ${step} of ${num_steps}, ${seconds(since)}`;
  }
}

async function main() {
  const [presets, names] = await Promise.all([call("/api/presets"), call("/api/classes")]);
  const [height, width] = presets.pipeline.image_size;
  byId("about").textContent = `${presets.pipeline.weights.from}, ${width} x ${height} pixels, ${names.length} classes, version ${presets.version}`;
  byId("images").max = presets.limits.images;
  // Before the form is ready, which forgets it.
  const started = sessionStorage.getItem(JOB);
  const studio = new Studio(presets, names);
  if (started) studio.follow(JSON.parse(started));
}

main().catch((error) => say(error.message, true));
