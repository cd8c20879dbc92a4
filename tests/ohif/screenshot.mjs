// Serves OHIF's build beside an Orthanc (one origin), opens its study, loads the SEG, and takes a picture.
// usage: node screenshot.mjs CACHE ORTHANC_URL PICTURE.png
import fs from 'node:fs';
import http from 'node:http';
import path from 'node:path';
import { createRequire } from 'node:module';

const [cache, orthanc, picture] = process.argv.slice(2);
const { chromium } = createRequire(import.meta.url)(path.join(cache, 'playwright-core'));
const dist = path.join(cache, 'app', 'dist');
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
    // From the first slice to the middle one.
    const image = series.find(s => s.MainDicomTags.Modality === 'MR');
    const box = await page.locator('.viewport-element').first().boundingBox();
    await page.mouse.click(box.x + box.width / 2, box.y + box.height - 40);
    for (let i = 0; i < Math.floor(image.Instances.length / 2); i++) {
      await page.keyboard.press('ArrowDown');
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
