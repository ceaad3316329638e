// Pages that are opened from disk may start no worker, and the search is one: here a hidden frame does its work.
if (location.protocol === "file:") {
  window.Worker = class {
    constructor(script) {
      this.waiting = [];
      this.frame = document.createElement("iframe");
      this.frame.hidden = true;
      this.frame.title = "search";
      document.head.append(this.frame);
      const inside = this.frame.contentWindow;
      inside.postMessage = (data) => setTimeout(() => this.onmessage && this.onmessage({ data }));
      const loaded = inside.document.createElement("script");
      loaded.src = script;
      loaded.onload = () => { const sent = this.waiting; this.waiting = null; sent.forEach((data) => this.postMessage(data)); };
      loaded.onerror = (error) => this.onerror && this.onerror(error);
      inside.document.head.append(loaded);
    }

    postMessage(data) {
      if (this.waiting) this.waiting.push(data);
      else setTimeout(() => this.frame.contentWindow && this.frame.contentWindow.onmessage({ data }));
    }

    terminate() { this.frame.remove(); }
  };
}
