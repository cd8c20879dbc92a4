// Serves OHIF's build beside an Orthanc (one origin), opens its study, loads the SEG, holds the pixels of every slice against
// the SEG (colours.mjs), and takes a picture of the middle slice. Exits with 1 where OHIF draws anything else.
// usage: node screenshot.mjs CACHE ORTHANC_URL PICTURE.png
import fs from 'node:fs';
import http from 'node:http';
import path from 'node:path';
import { createRequire } from 'node:module';
import { agrees, checkPositions, pointsOf, readSegmentation } from './colours.mjs';

const [cache, orthanc, picture] = process.argv.slice(2);
const { chromium } = createRequire(import.meta.url)(path.join(cache, 'playwright-core'));
const dist = path.join(cache, 'app', 'dist');
// Share of points that must agree: a label of the viewport may lie over some. A mask of the next slice agrees in up to 0.97.
const ENOUGH = 0.99;
const TYPES = {
  '.html': 'text/html', '.js': 'text/javascript', '.mjs': 'text/javascript', '.css': 'text/css', '.json': 'application/json',
  '.wasm': 'application/wasm', '.svg': 'image/svg+xml', '.png': 'image/png', '.woff2': 'font/woff2',
};

function config(origin) {
  const root = `${origin}/dicom-web`;
  return `window.config = ${JSON.stringify({
    name: 'scanside', routerBasename: null, extensions: [], modes: [], customizationService: {}, showStudyList: true,
    maxNumberOfWebWorkers: 2, showWarningMessageForCrossOrigin: false, showCPUFallbackMessage: false,
    showLoadingIndicator: true, strictZSpacingForVolumeViewport: true, groupEnabledModesFirst: true,
    investigationalUseDialog: { option: 'never' },
    maxNumRequests: { interaction: 20, thumbnail: 5, prefetch: 10 },
    defaultDataSourceName: 'orthanc',
    dataSources: [{
      namespace: '@ohif/extension-default.dataSourcesModule.dicomweb', sourceName: 'orthanc',
      configuration: {
        friendlyName: 'Orthanc', name: 'orthanc', wadoUriRoot: `${origin}/wado`, qidoRoot: root, wadoRoot: root,
        qidoSupportsIncludeField: false, imageRendering: 'wadors', thumbnailRendering: 'wadors', enableStudyLazyLoad: true,
        supportsFuzzyMatching: false, supportsWildcard: true, omitQuotationForMultipartRequest: true,
        bulkDataURI: { enabled: true },
      },
    }],
  })};`;
}

const server = http.createServer((request, response) => {
  const url = new URL(request.url, 'http://localhost');
  if (url.pathname.startsWith('/dicom-web') || url.pathname.startsWith('/wado')) {
    const to = new URL(orthanc);
    const proxied = http.request(
      { host: to.hostname, port: to.port, path: request.url, method: request.method, headers: request.headers },
      answer => { response.writeHead(answer.statusCode, answer.headers); answer.pipe(response); });
    proxied.on('error', e => { response.writeHead(502); response.end(String(e)); });
    request.pipe(proxied);
    return;
  }
  let file = path.normalize(path.join(dist, url.pathname));
  if (url.pathname === '/app-config.js') {
    response.writeHead(200, { 'content-type': 'text/javascript' });
    response.end(config(`http://${request.headers.host}`));
    return;
  }
  if (!file.startsWith(dist) || !fs.existsSync(file) || fs.statSync(file).isDirectory()) file = path.join(dist, 'index.html');
  response.writeHead(200, {
    'content-type': TYPES[path.extname(file)] ?? 'application/octet-stream',
    'cross-origin-opener-policy': 'same-origin', 'cross-origin-embedder-policy': 'require-corp',
  });
  fs.createReadStream(file).pipe(response);
});
await new Promise(done => server.listen(0, '127.0.0.1', done));
const origin = `http://127.0.0.1:${server.address().port}`;

const get = async what => (await fetch(`${orthanc}${what}`)).json();
const series = await Promise.all((await get('/series')).map(id => get(`/series/${id}`)));
const seg = series.find(s => s.MainDicomTags.Modality === 'SEG');
if (!seg) throw new Error('no SEG among the objects');
const study = (await get(`/studies/${seg.ParentStudy}`)).MainDicomTags.StudyInstanceUID;
const label = (await get(`/instances/${seg.Instances[0]}/simplified-tags`)).SegmentSequence[0].SegmentLabel;

const expected = await readSegmentation(orthanc, seg.Instances[0]);
await checkPositions(orthanc, expected);

/** What the viewport shows: which source frame, and how many points of the picture are as the SEG says. */
async function look(page) {
  const shown = await page.evaluate(() => {
    const { viewportGridService, cornerstoneViewportService } = window.services;
    const viewport = cornerstoneViewportService.getCornerstoneViewport(viewportGridService.getState().activeViewportId);
    const id = viewport.getCurrentImageId() ?? '';
    return { sop: /instances\/([0-9.]+)/.exec(id)?.[1], frame: /frames\/([0-9]+)/.exec(id)?.[1] ?? '1' };
  });
  const key = `${shown.sop}/${shown.frame}`;
  const slice = expected.slices.get(key);
  if (!slice) return { key, labelled: false, points: 0, good: 0 };
  const points = pointsOf(expected, slice);
  const png = (await page.screenshot()).toString('base64');
  const pixels = await page.evaluate(async ([worlds, png]) => {
    const { viewportGridService, cornerstoneViewportService } = window.services;
    const viewport = cornerstoneViewportService.getCornerstoneViewport(viewportGridService.getState().activeViewportId);
    const bytes = Uint8Array.from(atob(png), c => c.charCodeAt(0));
    const bitmap = await createImageBitmap(new Blob([bytes], { type: 'image/png' }));
    const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
    const context = canvas.getContext('2d');
    context.drawImage(bitmap, 0, 0);
    const { data } = context.getImageData(0, 0, bitmap.width, bitmap.height);
    const place = viewport.canvas.getBoundingClientRect();
    return worlds.map(world => {
      const [x, y] = viewport.worldToCanvas(world);
      const i = (Math.round(place.top + y) * bitmap.width + Math.round(place.left + x)) * 4;
      return [data[i], data[i + 1], data[i + 2]];
    });
  }, [points.map(p => p.world), png]);
  return { key, labelled: true, points: points.length, good: points.filter((p, i) => agrees(pixels[i], p.rgb)).length };
}

const browser = await chromium.launch({
  executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
  args: ['--no-sandbox', '--disable-background-networking', '--disable-component-update', '--disable-sync', '--no-first-run',
    '--enable-unsafe-swiftshader', '--use-gl=angle', '--use-angle=swiftshader'],
});
let failed = false;
try {
  const page = await browser.newPage({ viewport: { width: 1400, height: 800 } });
  const said = [];
  page.on('console', m => { if (m.type() === 'error') said.push(m.text().slice(0, 300)); });
  page.on('pageerror', e => said.push(`page: ${String(e).slice(0, 300)}`));
  page.on('response', r => { if (r.status() >= 400) said.push(`${r.status()} ${r.url()}`); });
  // Nothing outside this machine is asked for.
  await page.route(u => u.hostname !== '127.0.0.1', r => r.abort());
  try {
    await page.goto(`${origin}/segmentation?StudyInstanceUIDs=${study}`, { waitUntil: 'domcontentloaded' });
    const thumbnail = page.locator('[data-cy="study-browser-thumbnail-no-image"]', { hasText: /SEG/ }).first();
    await thumbnail.waitFor({ timeout: 150_000 });
    await thumbnail.dblclick();
    // A segment's row in the panel says that OHIF parsed the SEG.
    await page.getByText(label, { exact: true }).first().waitFor({ timeout: 120_000 });
    // The dialogue is answered, so that the SEG is not only previewed but loaded.
    const yes = page.getByRole('button', { name: 'Yes', exact: true });
    if (await yes.isVisible()) await yes.click();
    await page.waitForTimeout(5000);
    const image = series.find(s => s.MainDicomTags.Modality === 'MR');
    const box = await page.locator('.viewport-element').first().boundingBox();
    await page.mouse.click(box.x + box.width / 2, box.y + box.height - 40);
    // Every slice, from the first to the last. Drawing lags behind the key, so a disagreement is looked at again.
    const frames = image.Instances.length > 1 ? image.Instances.length
      : Number((await get(`/instances/${image.Instances[0]}/simplified-tags`)).NumberOfFrames ?? 1);
    const seen = new Set();
    for (let i = 0; i < frames; i++) {
      if (i > 0) await page.keyboard.press('ArrowDown');
      let result;
      for (let attempt = 0; attempt < 20; attempt++) {
        await page.waitForTimeout(300);
        result = await look(page);
        if (!seen.has(result.key) && result.good >= ENOUGH * result.points) break;
      }
      seen.add(result.key);
      const fine = result.good >= ENOUGH * result.points;
      if (!fine) failed = true;
      console.log(`slice ${i + 1}: ` + (result.labelled ? `${result.good} of ${result.points} points as the SEG says` : 'no segment')
        + (fine ? '' : '  WRONG'));
    }
    const missed = [...expected.slices.keys()].filter(key => !seen.has(key));
    if (missed.length) {
      failed = true;
      console.log(`${missed.length} labelled slices were never shown`);
    }
    for (let i = frames - 1; i > Math.floor(frames / 2); i--) {
      await page.keyboard.press('ArrowUp');
      await page.waitForTimeout(300);
    }
    await page.waitForTimeout(3000);
  } catch (e) {
    failed = true;
    console.error(String(e).slice(0, 600));
  }
  await page.screenshot({ path: picture });
  if (said.length) console.log([...new Set(said)].slice(0, 20).join('\n'));
} finally {
  await browser.close();
  server.close();
  server.closeAllConnections();
}
console.log(failed ? `failed; what was on the screen: ${picture}` : picture);
process.exit(failed ? 1 : 0);
